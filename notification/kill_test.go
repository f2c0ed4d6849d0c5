package notification

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// doomedService, when set, makes TestKilledBetweenSendingAndRecording the
// process that is to die: where the database is, the mail server, the gateway.
const doomedService = "PIZZA_TEST_DOOMED_SERVICE"

// A suicidal sender dies by SIGKILL when the mail is accepted, once nothing
// else is on its way.
type suicidal struct {
	Sender
	w *world
}

func (s suicidal) Send(ctx context.Context, m Message) Result {
	if r := s.Sender.Send(ctx, m); r.Outcome != Accepted {
		return r
	}
	s.w.eventually("the SMS is recorded", func() bool { return s.w.count(Sent) == 1 })
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Kill()
	}
	if err != nil {
		panic(err)
	}
	select {} // until the signal has come through
}

// The mail server has the mail, and the process that gave it is killed before
// it could record that: the mail is sent again, under the same Message-ID.
func TestKilledBetweenSendingAndRecording(t *testing.T) {
	if doom := os.Getenv(doomedService); doom != "" {
		at := strings.Split(doom, "\n")
		db := sqltest.Connect(t, at[0])
		w := &world{t: t, db: db, ob: outbox.New(db, "/notification-service"), mail: &gate{addr: at[1]}, sms: &gate{addr: at[2]}}
		s := w.service()
		s.channels[Email].sender = suicidal{s.channels[Email].sender, w}
		w.run(s)
		<-t.Context().Done() // it dies before
	}
	for _, engine := range []sqldb.Engine{sqldb.SQLite, sqldb.Postgres} {
		t.Run(string(engine), func(t *testing.T) {
			at := sqltest.URL(t, engine)
			w := newWorld(t, sqltest.Connect(t, at, sqltest.Schema{Name: "outbox", FS: outbox.Schema}, sqltest.Schema{Name: "notification", FS: Schema}))
			w.edit = briefly
			second := w.service()
			o := newOrder("")
			w.handle(second, o.created())

			first := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledBetweenSendingAndRecording$", "-test.timeout=120s")
			first.Env = append(os.Environ(), doomedService+"="+strings.Join([]string{at, w.mail.addr, w.sms.addr}, "\n"))
			var said bytes.Buffer
			first.Stdout, first.Stderr = &said, &said
			if err := first.Run(); err == nil || first.ProcessState.Exited() {
				t.Fatalf("the first process was not killed: %v\n%s", err, &said)
			}
			w.want(o, map[string]string{"order_confirmation email": "pending 1", "order_confirmation sms": "sent 1"})
			w.wantMessages(o, 1, 1)
			// its lease runs out
			w.exec(`UPDATE notification_deliveries SET due_at = $1 WHERE status = 'pending'`, sqldb.Now().Add(-time.Second))
			w.run(second)
			w.awaitFinal()
			w.want(o, map[string]string{"order_confirmation email": "sent 2", "order_confirmation sms": "sent 1"})
			w.wantRepeatedMail(o)
		})
	}
}
