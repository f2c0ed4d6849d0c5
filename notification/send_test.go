package notification

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"pizzaflow/job"
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
		w.settled()
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
		w.settled()
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
		w.settled()
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
		w.settled()
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
		w.settled()
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
		w.settled()
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

// A stalled sender sends and then stands still, like a process that is paused
// or killed before it could record what it did.
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
		w.edit = func(c *Config) { c.lease, c.patience = time.Second, 2*time.Second } // then it renews nothing, like the dead
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
		w.settled()
		stopHealthy()
		w.want(o, map[string]string{"order_confirmation email": "sent 2", "order_confirmation sms": "sent 1"})
		// the first comes back and must not touch what is no longer its own
		close(slow.resume)
		stopFirst()
		w.want(o, map[string]string{"order_confirmation email": "sent 2", "order_confirmation sms": "sent 1"})
		if n := testutil.ToFloat64(first.metrics.deliveries.WithLabelValues("email", "sent")); n != 0 {
			t.Errorf("a lost lease was counted %v times", n)
		}
		w.wantRepeatedMail(o)
	})
}

// The stop falls while many messages are sent and none of them is recorded.
func TestCleanStopRepeatsNothing(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		first := w.service()
		sent, resume := make(chan Result, 4*laneLimit), make(chan struct{})
		for _, l := range first.channels {
			l.sender = &stalled{Sender: l.sender, sent: sent, resume: resume}
		}
		all := make([]anOrder, 4*laneLimit) // of each channel four times as many as are sent at once
		for i := range all {
			all[i] = newOrder("")
			w.handle(first, all[i].created())
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- first.Run(ctx) }()
		for range 2 * laneLimit {
			if r := <-sent; r.Outcome != Accepted {
				t.Fatalf("Send = %+v", r)
			}
		}
		cancel()
		close(resume)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if n := w.count(Sent); n != 2*laneLimit {
			t.Errorf("%d sent at the stop, want the %d under way", n, 2*laneLimit)
		}
		var leased int
		err := db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM notification_deliveries WHERE lease_token IS NOT NULL`).Scan(&leased)
		if err != nil || leased != 0 {
			t.Errorf("%d rows are left leased, %v", leased, err)
		}
		second := w.service()
		w.run(second)
		w.settled()
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
		email := &stalled{Sender: s.channels[Email].sender, sent: make(chan Result, 8*laneLimit), resume: make(chan struct{})}
		s.channels[Email].sender = email
		const n = 4*laneLimit + 30
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
		w.settled()
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
	w.settled()
	w.want(o, map[string]string{"order_confirmation email": "sent 1", "order_confirmation sms": "sent 1"})
	w.wantMessages(o, 1, 1)
}

type sendFunc func(context.Context, Message) Result

func (f sendFunc) Send(ctx context.Context, m Message) Result { return f(ctx, m) }

// Of results that are recorded together, that of a message which is another's
// by now is left alone.
func TestOneOfAGroupLostItsLease(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		s := w.service()
		o := newOrder("")
		w.handle(s, o.created(), o.paid())
		w.exec(`UPDATE notification_deliveries SET lease_token = 'ours'`)
		rows, err := db.QueryContext(t.Context(), `SELECT id FROM notification_deliveries ORDER BY type, channel`)
		all, err := idsInOrder(rows, err)
		if err != nil || len(all) != 4 {
			t.Fatal(all, err)
		}
		settled := make([]settlement, len(all))
		for i, id := range all {
			settled[i] = settlement{claim: job.Job{ID: id, Token: "ours", Attempt: 1}, status: Sent, pause: never, sentAt: sqldb.Now(), providerID: "it-" + id}
		}
		settled[1].claim.Token = "theirs"
		settled[2].status, settled[2].sentAt, settled[2].reason = Failed, time.Time{}, "permanent: no such mailbox"
		results, err := settleDeliveries(t.Context(), db, settled)
		if err != nil {
			t.Fatal(err)
		}
		for i, err := range results {
			if errors.Is(err, errLeaseLost) != (i == 1) {
				t.Errorf("the result of %d is %v", i, err)
			}
		}
		w.want(o, map[string]string{
			"order_confirmation email": "sent 0", "order_confirmation sms": "pending 0",
			"payment_confirmation email": "failed 0", "payment_confirmation sms": "sent 0",
		})
		var n int
		err = db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM notification_deliveries WHERE lease_token IS NULL AND due_at IS NULL AND
			(status = 'failed' AND error = 'permanent: no such mailbox' AND sent_at IS NULL OR status = 'sent' AND error IS NULL AND sent_at IS NOT NULL)`).Scan(&n)
		if err != nil || n != 3 {
			t.Errorf("%d rows are as they should be, want 3, %v", n, err)
		}
	})
}

func idsInOrder(rows *sql.Rows, err error) (all []string, _ error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		all = append(all, id)
	}
	return all, rows.Err()
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
