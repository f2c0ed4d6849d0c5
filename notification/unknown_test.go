package notification

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pizzaflow/sqldb"
)

// slowServer is a mail server on one connection, which takes so long for its answer
// to each reply's command: replies[i] comes after pauses[i].
func slowServer(conn net.Conn, replies []string, pauses []time.Duration) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for i, r := range replies {
		if i > 0 && !readCommand(in, replies[i-1]) {
			return
		}
		time.Sleep(pauses[i]) // in virtual time
		if _, err := io.WriteString(conn, r+"\r\n"); err != nil {
			return
		}
	}
	_, _ = io.Copy(io.Discard, in) // until the client hangs up
}

// A mail server that looks at the mail for minutes after the final dot gets it once,
// and is waited for; before the dot it is not, for giving up repeats nothing.
func TestSlowMailServer(t *testing.T) {
	replies := []string{"220 mail.test", "250 mail.test", "250 ok", "250 ok", "354 go on", "250 taken"}
	for _, tt := range []struct {
		name  string
		step  int
		pause time.Duration
		want  Outcome
		after time.Duration // when Send returns
	}{
		{"at once", 5, 0, Accepted, 0},
		{"35 s after the final dot", 5, 35 * time.Second, Accepted, 35 * time.Second},
		{"9 min after the final dot", 5, 9 * time.Minute, Accepted, 9 * time.Minute},
		{"no answer to the final dot", 5, time.Hour, Unknown, 10 * time.Minute},
		{"no answer to DATA", 4, time.Hour, Temporary, sendTimeout},
		{"no answer to RCPT", 3, time.Hour, Temporary, sendTimeout},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conns := 0
				sender, err := NewSMTP("smtp://127.0.0.1:25", func(context.Context, string, string) (net.Conn, error) {
					conns++
					ours, theirs := net.Pipe()
					pauses := make([]time.Duration, len(replies))
					pauses[tt.step] = tt.pause
					go slowServer(theirs, replies, pauses)
					return ours, nil
				})
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				r := sender.Send(t.Context(), testMail("id-1"))
				if took := time.Since(began); r.Outcome != tt.want || took != tt.after || conns != 1 {
					t.Errorf("Send = %+v after %s over %d connections, want %s after %s", r, took, conns, tt.want, tt.after)
				}
				if err := sender.(io.Closer).Close(); err != nil {
					t.Error(err)
				}
				time.Sleep(2 * time.Hour) // the server ends
			})
		})
	}
}

// A gateway that takes 12 s for its answer bills one SMS, and one that never answers
// is an unknown outcome.
func TestSlowGateway(t *testing.T) {
	for pause, want := range map[time.Duration]Outcome{12 * time.Second: Accepted, time.Hour: Unknown} {
		synctest.Test(t, func(t *testing.T) {
			sender, err := NewSMS("http://127.0.0.1:80/sms/messages", func(context.Context, string, string) (net.Conn, error) {
				ours, theirs := net.Pipe()
				go func() {
					defer theirs.Close()
					if req, err := http.ReadRequest(bufio.NewReader(theirs)); err == nil {
						_, _ = io.Copy(io.Discard, req.Body)
					}
					time.Sleep(pause) // in virtual time
					_, _ = io.WriteString(theirs, "HTTP/1.1 202 Accepted\r\nContent-Length: 14\r\n\r\n{\"id\":\"sms-1\"}")
				}()
				return ours, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if r := sender.Send(t.Context(), testSMS()); r.Outcome != want {
				t.Errorf("with an answer after %s: %+v, want %s", pause, r, want)
			}
			if err := sender.(io.Closer).Close(); err != nil {
				t.Error(err)
			}
			time.Sleep(2 * time.Hour) // the gateway ends
		})
	}
}

// Whoever takes messages and never says so gets a mail three times and an SMS twice.
// Then the delivery stands for the operator.
func TestUnknownOutcomesEnd(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		w.mail.set(func() { w.mail.swallow = 1000 })
		var requests atomic.Int32
		gateway := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if requests.Add(1) == 1 {
				panic(http.ErrAbortHandler) // it hangs up
			}
			_, _ = io.WriteString(rw, "<html>log in</html>") // the other way not to say so
		}))
		t.Cleanup(gateway.Close)
		email, err := NewSMTP("smtp://"+w.mail.addr, nil)
		if err != nil {
			t.Fatal(err)
		}
		sms, err := NewSMS(gateway.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		s := w.serviceWith(email, sms)
		w.run(s)
		o := newOrder("")
		w.handle(s, o.created())
		w.awaitFinal()
		w.want(o, map[string]string{"order_confirmation email": "failed 3", "order_confirmation sms": "failed 2"})
		if mails, smses := len(w.mails(o)), requests.Load(); mails != 3 || smses != 2 {
			t.Errorf("%d mails and %d SMS were sent, want 3 and 2", mails, smses)
		}
		w.wantReason("email", "unknown: 3 of the attempts may have sent it, outcome unknown: final dot: ")
		w.wantReason("sms", "unknown: 2 of the attempts may have sent it, outcome unknown: SMS gateway: 200 no id of the SMS in <html>log in</html>")
		w.counted(s, Email, "unknown", 2)
		w.counted(s, Email, "abandoned", 1)
		w.counted(s, SMS, "unknown", 1)
		w.counted(s, SMS, "abandoned", 1)
	})
}

func (w *world) wantReason(channel, prefix string) {
	w.t.Helper()
	var reason string
	err := w.db.Read().QueryRowContext(w.t.Context(), `SELECT COALESCE(error, '') FROM notification_deliveries WHERE channel = $1`, channel).Scan(&reason)
	if err != nil || !strings.HasPrefix(reason, prefix) {
		w.t.Errorf("the reason of %s is %q, %v, want %q", channel, reason, err, prefix)
	}
}

// A gateway that is away behind a proxy which takes connections and hangs up costs one
// unknown outcome, however long it is away: the repetition is kept until it is back.
func TestGatewayAwayBehindAProxy(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		w.sms.set(func() { w.sms.shut = true })
		s := w.service()
		w.run(s)
		o := newOrder("")
		w.handle(s, o.created())
		w.eventually("the SMS was tried four times", func() bool {
			w.exec(`UPDATE notification_deliveries SET due_at = ` + sqldb.Clock + ` WHERE due_at IS NOT NULL AND lease_token IS NULL`)
			var n int
			err := db.Read().QueryRowContext(t.Context(), `SELECT attempts FROM notification_deliveries WHERE channel = 'sms'`).Scan(&n)
			return err == nil && n >= 4
		})
		w.sms.set(func() { w.sms.shut = false })
		w.awaitFinal()
		w.wantMessages(o, 1, 1)
		w.counted(s, SMS, "sent", 1)
	})
}

// A gateway that does not know of Expect gets the repetition all the same.
func TestGatewayThatRefusesToBeAsked(t *testing.T) {
	requests := 0
	gateway := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		requests++
		if r.Header.Get("Expect") != "" {
			rw.WriteHeader(http.StatusExpectationFailed)
			return
		}
		_, _ = io.WriteString(rw, `{"id":"sms-1"}`) // the result tells
	}))
	defer gateway.Close()
	m := testSMS()
	m.MayBeSent = true
	if r := newTestSMS(t, gateway.URL).Send(t.Context(), m); r.Outcome != Accepted || requests != 2 {
		t.Errorf("Send = %+v after %d requests", r, requests)
	}
}

// Unknown outcomes count wherever they stand among others, and across processes; a
// refusal that comes later does not make them forgotten.
func TestUnknownOutcomesAmongOthers(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		outcomes := map[Channel][]Outcome{
			Email: {Unknown, Temporary, Unknown, Temporary, Temporary, Unknown, Accepted},
			SMS:   {Temporary, Unknown, Temporary, Permanent, Accepted},
		}
		calls := map[Channel]*atomic.Int32{Email: {}, SMS: {}}
		scripted := func(channel Channel) Sender {
			return sendFunc(func(context.Context, Message) Result {
				n := calls[channel].Add(1)
				return Result{Outcome: outcomes[channel][n-1], Err: errors.New("so be it")}
			})
		}
		s := w.serviceWith(scripted(Email), scripted(SMS))
		stop := w.run(s)
		o := newOrder("")
		w.handle(s, o.created())
		w.eventually("a mail was tried twice", func() bool { return calls[Email].Load() >= 2 })
		stop()
		w.run(w.serviceWith(scripted(Email), scripted(SMS)))
		w.eventually("all is final, without the pauses", func() bool {
			w.exec(`UPDATE notification_deliveries SET due_at = ` + sqldb.Clock + ` WHERE due_at IS NOT NULL AND lease_token IS NULL`)
			return w.count(Pending) == 0
		})
		w.want(o, map[string]string{"order_confirmation email": "failed 6", "order_confirmation sms": "failed 4"})
		w.wantReason("email", "unknown: 3 of the attempts may have sent it")
		w.wantReason("sms", "permanent: 1 of the attempts may have sent it")
	})
}

// Mails whose answers take long, as many as are sent at once, hold up no other: each
// leaves its place. And a stop does not wait for their answers.
func TestSlowAnswersHoldUpNothing(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		w.edit = func(c *Config) { c.slowAfter, c.stopWait = 10*time.Millisecond, 10*time.Millisecond }
		var hanging atomic.Int32
		sandbox, err := NewSMTP("smtp://"+w.mail.addr, nil)
		if err != nil {
			t.Fatal(err)
		}
		email := sendFunc(func(ctx context.Context, m Message) Result {
			if hanging.Add(1) > inFlight {
				return sandbox.Send(ctx, m)
			}
			<-ctx.Done()
			return Result{Outcome: Unknown, Err: ctx.Err()}
		})
		sms, err := NewSMS((&url.URL{Scheme: "http", Host: w.sms.addr, Path: "/sms/messages"}).String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		s := w.serviceWith(email, sms)
		stop := w.run(s)
		const others = 5
		for range inFlight + others {
			w.handle(s, newOrder("").created())
		}
		w.eventually("the others are sent", func() bool { return w.count(Sent) == inFlight+2*others })
		stop()
		if err := sandbox.(io.Closer).Close(); err != nil {
			t.Error(err)
		}
		var recorded int
		err = db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM notification_deliveries
			WHERE status = 'pending' AND lease_token IS NULL AND unknown_attempts = 1 AND error LIKE 'unknown: %'`).Scan(&recorded)
		if err != nil || recorded != inFlight {
			t.Errorf("%d of %d attempts that the stop broke off are recorded as unknown, %v", recorded, inFlight, err)
		}
	})
}
