package notification

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

func TestMailServerDownThenUp(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		s := w.service()
		w.mail.set(func() { w.mail.shut = true })
		w.run(s)
		o := newOrder("")
		w.handle(s, o.created(), o.paid())
		w.eventually("mails were tried and SMS sent", func() bool {
			return testutil.ToFloat64(s.metrics.deliveries.WithLabelValues("email", "temporary")) >= 2 && w.count(Sent) == 2
		})
		w.wantMessages(o, 0, 2)
		var reason string
		if err := db.QueryRowContext(t.Context(), `SELECT error FROM notification_deliveries WHERE channel = 'email' LIMIT 1`).Scan(&reason); err != nil ||
			!strings.HasPrefix(reason, "temporary: connect: ") {
			t.Errorf("error %q, %v", reason, err)
		}
		w.mail.set(func() { w.mail.shut = false })
		w.awaitFinal()
		w.wantMessages(o, 2, 2)
		if n := w.count(Sent); n != 4 {
			t.Errorf("%d sent, want 4", n)
		}
		if err := db.QueryRowContext(t.Context(), `SELECT COUNT(error) FROM notification_deliveries`).Scan(&reason); err != nil || reason != "0" {
			t.Errorf("%s rows that were sent keep an error, %v", reason, err)
		}
	})
}

func TestSMSGatewayDownDoesNotRepeatMail(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		s := w.service()
		w.sms.set(func() { w.sms.shut = true })
		w.run(s)
		o := newOrder("")
		w.handle(s, o.created())
		w.eventually("the SMS was tried twice", func() bool {
			failed := func(result string) float64 {
				return testutil.ToFloat64(s.metrics.deliveries.WithLabelValues("sms", result))
			}
			return failed("temporary")+failed("unknown") >= 2
		})
		w.wantMessages(o, 1, 0)
		w.sms.set(func() { w.sms.shut = false })
		w.awaitFinal()
		w.wantMessages(o, 1, 1)
		if got := w.deliveries(o)["order_confirmation email"]; got != "sent 1" {
			t.Errorf("the mail's delivery is %q, want sent 1", got)
		}
	})
}

func TestBounce(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		s := w.service()
		w.run(s)
		o := newOrder("+bounce")
		w.handle(s, o.created())
		w.awaitFinal()
		w.want(o, map[string]string{"order_confirmation email": "failed 1", "order_confirmation sms": "sent 1"})
		w.wantMessages(o, 0, 1)
		var reason string
		err := db.QueryRowContext(t.Context(), `SELECT error FROM notification_deliveries WHERE channel = 'email'`).Scan(&reason)
		if err != nil || !strings.HasPrefix(reason, "permanent: RCPT: 550") {
			t.Errorf("error %q, %v", reason, err)
		}
	})
}

func TestTemporaryRefusal(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		s := w.service()
		w.run(s)
		o := newOrder("+tempfail")
		w.handle(s, o.created())
		w.awaitFinal()
		w.want(o, map[string]string{"order_confirmation email": "sent 2", "order_confirmation sms": "sent 1"})
		w.wantMessages(o, 1, 1)
	})
}

func TestGivenUpAfterADay(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		s := w.service()
		o := newOrder("+tempfail-always")
		w.handle(s, o.created())
		w.exec(`UPDATE notification_deliveries SET created_at = $1, attempts = $2 WHERE channel = 'email'`, sqldb.Now().Add(-giveUpAfter), dayOfTries-1)
		w.run(s)
		w.awaitFinal()
		w.want(o, map[string]string{"order_confirmation email": "failed 96", "order_confirmation sms": "sent 1"})
		w.counted(s, Email, "expired", 1)
	})
}

// The server took the mail and the answer was lost: the one case where a mail
// is sent again. The receiver can tell by the Message-ID.
func TestAnswerToTheFinalDotLost(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		s := w.service()
		w.mail.set(func() { w.mail.swallow = 1 })
		w.run(s)
		o := newOrder("")
		w.handle(s, o.created())
		w.awaitFinal()
		w.want(o, map[string]string{"order_confirmation email": "sent 2", "order_confirmation sms": "sent 1"})
		w.wantRepeatedMail(o)
		w.counted(s, Email, "unknown", 1)
	})
}

func (w *world) wantRepeatedMail(o anOrder) {
	w.t.Helper()
	w.wantMessages(o, 2, 1)
	mails := w.mails(o)
	if len(mails) == 2 && (mails[0].MessageID != mails[1].MessageID || mails[0].MessageID == "" || mails[0].Text != mails[1].Text) {
		w.t.Errorf("the repeated mail differs: %+v", mails)
	}
}

// A stalled sender sends and then stands still, like a process that is paused or
// killed before it could record the result.
type stalled struct {
	Sender
	sent   chan Result
	resume chan struct{}
}

func (s *stalled) Send(ctx context.Context, m Message) Result {
	r := s.Sender.Send(ctx, m)
	s.sent <- r
	<-s.resume
	return r
}

func TestCrashBetweenSendingAndRecording(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		w.edit = briefly
		healthy := w.service()
		w.edit = func(c *Config) { c.lease, c.jobTimeout = time.Second, 2*time.Second } // then it renews no lease, like a dead process
		first := w.service()
		slow := &stalled{Sender: first.channels[Email].sender, sent: make(chan Result, 1), resume: make(chan struct{})}
		first.channels[Email].sender = slow
		o := newOrder("")
		stopFirst := w.run(first)
		w.handle(first, o.created())
		if r := <-slow.sent; r.Outcome != Accepted {
			t.Fatalf("the first attempt came to %+v", r)
		}
		w.eventually("the SMS is sent", func() bool { return w.count(Sent) == 1 })
		stopHealthy := w.run(healthy)
		w.awaitFinal()
		stopHealthy()
		w.want(o, map[string]string{"order_confirmation email": "sent 2", "order_confirmation sms": "sent 1"})
		// the first goes on and must not change a row that is leased to another
		close(slow.resume)
		stopFirst()
		w.want(o, map[string]string{"order_confirmation email": "sent 2", "order_confirmation sms": "sent 1"})
		if n := testutil.ToFloat64(first.metrics.deliveries.WithLabelValues("email", "sent")); n != 0 {
			t.Errorf("a lost lease was counted %v times", n)
		}
		w.wantRepeatedMail(o)
	})
}

// inFlight is how many messages of a channel are sent at once, or sent and not
// recorded yet, as doc.go promises.
const inFlight = 128

// The stop falls while as many messages as may be are sent and none of them is
// recorded.
func TestCleanStopRepeatsNothing(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		first := w.service()
		sent, resume := make(chan Result, 4*inFlight), make(chan struct{})
		for _, c := range first.channels {
			c.sender = &stalled{Sender: c.sender, sent: sent, resume: resume}
		}
		all := make([]anOrder, 4*inFlight) // of each channel four times as many as are sent at once
		for i := range all {
			all[i] = newOrder("")
			w.handle(first, all[i].created())
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- first.Run(ctx) }()
		for range 2 * inFlight {
			if r := <-sent; r.Outcome != Accepted {
				t.Fatalf("Send = %+v", r)
			}
		}
		cancel()
		close(resume)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if n := w.count(Sent); n != 2*inFlight {
			t.Errorf("%d sent at the stop, want the %d under way", n, 2*inFlight)
		}
		var leased int
		err := db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM notification_deliveries WHERE lease_token IS NOT NULL`).Scan(&leased)
		if err != nil || leased != 0 {
			t.Errorf("%d rows are left leased, %v", leased, err)
		}
		second := w.service()
		w.run(second)
		w.awaitFinal()
		for _, o := range all {
			w.wantMessages(o, 1, 1)
		}
	})
}

// A mail server that takes connections and says nothing: no mail gets on until
// all SMS are sent.
func TestHangingMailServerDoesNotHoldUpSMS(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		s := w.service()
		email := &stalled{Sender: s.channels[Email].sender, sent: make(chan Result, 8*inFlight), resume: make(chan struct{})}
		s.channels[Email].sender = email
		const n = 4*inFlight + 30
		all := make([]anOrder, n)
		for i := range all {
			all[i] = newOrder("")
			w.handle(s, all[i].created())
		}
		w.run(s)
		smses := func() (n int) {
			err := db.Read().QueryRowContext(t.Context(),
				`SELECT COUNT(*) FROM notification_deliveries WHERE channel = 'sms' AND status = 'sent'`).Scan(&n)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		w.eventually("all SMS are sent", func() bool { return smses() == n })
		if got := w.count(Sent); got != n {
			t.Errorf("%d deliveries are sent, want only the %d SMS", got, n)
		}
		close(email.resume)
		w.awaitFinal()
		for _, o := range all {
			w.wantMessages(o, 1, 1)
		}
	})
}

// The database is away when the result is to be recorded: the message must not
// be sent again for that. Only SQLite can be made to fail for one test alone.
func TestResultIsRecordedWhenTheDatabaseComesBack(t *testing.T) {
	db := sqltest.Open(t, sqldb.SQLite,
		sqltest.Schema{Name: "outbox", FS: outbox.Schema}, sqltest.Schema{Name: "notification", FS: Schema})
	w := newWorld(t, db)
	s := w.service()
	o := newOrder("")
	slow := &stalled{Sender: s.channels[Email].sender, sent: make(chan Result, 1), resume: make(chan struct{})}
	returned := make(chan struct{})
	s.channels[Email].sender = sendFunc(func(ctx context.Context, m Message) Result {
		defer close(returned)
		return slow.Send(ctx, m)
	})
	w.run(s)
	w.handle(s, o.created())
	<-slow.sent
	w.eventually("the SMS is sent", func() bool { return w.count(Sent) == 1 })
	w.exec(`PRAGMA query_only = 1`)
	close(slow.resume)
	<-returned
	w.exec(`PRAGMA query_only = 0`)
	w.awaitFinal()
	w.want(o, map[string]string{"order_confirmation email": "sent 1", "order_confirmation sms": "sent 1"})
	w.wantMessages(o, 1, 1)
}

type sendFunc func(context.Context, Message) Result

func (f sendFunc) Send(ctx context.Context, m Message) Result { return f(ctx, m) }

// Of results that are recorded together, that of a delivery which is leased to
// another by now is left alone.
func TestLeasesLostInAGroup(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		s := w.service()
		var sent, returned atomic.Int32
		resume := make(chan struct{})
		for _, c := range s.channels {
			sender := c.sender
			c.sender = sendFunc(func(ctx context.Context, m Message) Result {
				defer returned.Add(1)
				r := Result{Outcome: Permanent, Err: errors.New("no such mailbox")}
				if !strings.Contains(m.Subject, "оплачен") {
					r = sender.Send(ctx, m)
				}
				sent.Add(1)
				<-resume
				return r
			})
		}
		orders := []anOrder{newOrder(""), newOrder(""), newOrder("")}
		for _, o := range orders {
			w.handle(s, o.created(), o.paid())
		}
		w.run(s)
		all := int32(4 * len(orders))
		w.eventually("all messages are sent", func() bool { return sent.Load() == all })
		release := sqltest.Hold(t, db, "notification_deliveries",
			`UPDATE notification_deliveries SET lease_token = 'theirs' WHERE type = 'order_confirmation' AND channel = 'sms'`)
		close(resume)
		w.eventually("their results wait to be recorded", func() bool { return returned.Load() == all })
		release()
		w.counted(s, Email, "sent", float64(len(orders)))
		w.counted(s, Email, "permanent", float64(len(orders)))
		w.counted(s, SMS, "sent", float64(len(orders))) // those of payments
		for _, o := range orders {
			w.want(o, map[string]string{
				"order_confirmation email": "sent 1", "order_confirmation sms": "pending 1",
				"payment_confirmation email": "failed 1", "payment_confirmation sms": "sent 1",
			})
		}
		for condition, want := range map[string]int{
			`lease_token = 'theirs' AND due_at IS NOT NULL AND sent_at IS NULL AND error IS NULL`:                                       3,
			`status = 'failed' AND lease_token IS NULL AND due_at IS NULL AND sent_at IS NULL AND error = 'permanent: no such mailbox'`: 3,
			`status = 'sent' AND lease_token IS NULL AND due_at IS NULL AND sent_at IS NOT NULL AND error IS NULL`:                      6,
		} {
			var n int
			err := db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM notification_deliveries WHERE `+condition).Scan(&n)
			if err != nil || n != want {
				t.Errorf("%d rows with %s, want %d, %v", n, condition, want, err)
			}
		}
	})
}

// Every connection to the database is cut again and again while messages are
// sent and recorded: none is lost, and none sent twice.
func TestDatabaseCutOffUnderLoad(t *testing.T) {
	url := sqltest.URL(t, sqldb.Postgres)
	db := sqltest.Connect(t, url, sqltest.Schema{Name: "outbox", FS: outbox.Schema}, sqltest.Schema{Name: "notification", FS: Schema})
	killer := sqltest.Connect(t, url)
	w := newWorld(t, db)
	w.edit = briefly
	s := w.service()
	w.run(s)
	all := make([]anOrder, 200)
	for i := range all {
		all[i] = newOrder("")
		w.handle(s, all[i].created(), all[i].paid())
	}
	cuts, looks, pause, before := 0, 0, 1, 0
	w.eventually("all is sent", func() bool {
		var sent int
		err := killer.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM notification_deliveries WHERE status = 'sent'`).Scan(&sent)
		if err != nil {
			t.Fatal(err)
		}
		if looks++; looks%pause != 0 {
			return sent == 4*len(all)
		}
		// where nothing gets done between two cuts they come more seldom
		if sent > before {
			pause, before = 1, sent
		} else {
			pause = min(2*pause, 256)
		}
		cuts++
		_, err = killer.ExecContext(t.Context(), `
			SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE application_name = current_setting('application_name') AND pid <> pg_backend_pid()`)
		if err != nil {
			t.Fatal(err)
		}
		return sent == 4*len(all)
	})
	for _, o := range all {
		w.wantMessages(o, 2, 2)
	}
	t.Logf("cut %d times", cuts)
}
