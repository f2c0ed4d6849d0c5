package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pizzaflow/sqldb"
)

// clockEnv is the variable with the file that has the error of a process's clock.
const clockEnv = "PIZZA_TEST_CLOCK"

// wrongNow replaces sqldb.Now. The other functions replace those of the package time
// for a clock that was wrong from the start; a clock that is set later changes only
// sqldb.Now, because the monotonic clock cannot be set.
const wrongNow = `
func Now() time.Time { return time.Now().Add(clockShift()).UTC().Truncate(time.Microsecond) }

func clockShift() time.Duration {
	text, _ := os.ReadFile(os.Getenv("` + clockEnv + `"))
	shift, _ := time.ParseDuration(string(text))
	return shift
}

var firstShift = clockShift()

func WrongNow() time.Time                  { return time.Now().Add(firstShift) }
func WrongUntil(t time.Time) time.Duration { return t.Sub(WrongNow()) }
func WrongSince(t time.Time) time.Duration { return WrongNow().Sub(t) }
`

// wrongTimes is a file of package job with the functions that its files call
// instead of those of the package time.
const wrongTimes = `package job

import (
	"time"

	"pizzaflow/sqldb"
)

func wrongNow() time.Time                  { return sqldb.WrongNow() }
func wrongUntil(t time.Time) time.Duration { return sqldb.WrongUntil(t) }
func wrongSince(t time.Time) time.Duration { return sqldb.WrongSince(t) }
`

// wrongClock builds the program with a clock that can be set.
var wrongClock = sync.OnceValues(func() (binary string, err error) {
	dir, err := os.MkdirTemp(scratch, "clock-")
	if err != nil {
		return "", err
	}
	files := map[string]string{} // what is built instead, by the original's path
	replace := func(original, text string) error {
		path, err := filepath.Abs(original)
		if err != nil {
			return err
		}
		files[path] = filepath.Join(dir, fmt.Sprint(len(files), "-", filepath.Base(original)))
		return os.WriteFile(files[path], []byte(text), 0o600)
	}
	now, err := os.ReadFile("../sqldb/time.go")
	if err != nil {
		return "", err
	}
	text := strings.NewReplacer("import (", "import (\n\t\"os\"",
		"\nfunc Now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }\n", wrongNow).Replace(string(now))
	if !strings.Contains(text, wrongNow) {
		return "", errors.New("sqldb/time.go reads no clock")
	}
	if err := errors.Join(replace("../sqldb/time.go", text), replace("../job/wrong_times.go", wrongTimes)); err != nil {
		return "", err
	}
	sources, err := filepath.Glob("../job/*.go")
	if err != nil {
		return "", err
	}
	times := strings.NewReplacer("time.Now()", "wrongNow()", "time.Until(", "wrongUntil(", "time.Since(", "wrongSince(")
	for _, file := range sources {
		source, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		text := times.Replace(string(source))
		if strings.HasSuffix(file, "_test.go") || text == string(source) {
			continue
		}
		if err := replace(file, text+"\nvar _ time.Time // it may need the package for nothing else\n"); err != nil {
			return "", err
		}
	}
	if len(files) < 4 {
		return "", errors.New("no file of job reads a clock")
	}
	overlay, err := json.Marshal(map[string]any{"Replace": files})
	if err != nil {
		return "", err
	}
	list, binary := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "pizza")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		return "", err
	}
	if out, err := exec.Command("go", "build", "-overlay", list, "-o", binary, "pizzaflow/cmd/pizza").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the program with a clock that can be set: %w\n%s", err, out)
	}
	return binary, nil
})

// clock is the file with the error of a process's clock.
func (d *deployment) clock(name string) string {
	return filepath.Join(filepath.Dir(d.dir), "clock-"+strings.NewReplacer(",", "+", "/", "-").Replace(name))
}

// setClock sets the clock of a process, which may be running.
func (d *deployment) setClock(t *testing.T, name string, by time.Duration) {
	t.Helper()
	if err := os.WriteFile(d.clock(name), []byte(by.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// clocked deploys the program whose clock can be set.
func clocked(t *testing.T, engine sqldb.Engine, processes ...string) *deployment {
	t.Helper()
	if engine == sqldb.Postgres {
		databaseServer(t)
	}
	binary, err := wrongClock()
	if err != nil {
		t.Fatal(err)
	}
	return prepare(t, setup{engine: engine, processes: processes, binary: binary})
}

// TestClocksApart has two processes send messages, of which one is ahead by more
// than a lease, with one PostgreSQL and a slow mail server: neither takes over the
// other's leases, and no message is sent twice.
func TestClocksApart(t *testing.T) {
	t.Parallel()
	const world, behind, ahead = "sandbox,order,payment,frontend", "notification", "notification/ahead"
	d := clocked(t, sqldb.Postgres, "broker", world, behind, ahead)
	d.setClock(t, ahead, 12*time.Second)
	d.smtp.Delay(100 * time.Millisecond)
	d.start("broker", world)
	d.start(behind, ahead)
	orders := 0
	for began := time.Now(); time.Since(began) < 15*time.Second; orders++ { // a process takes over only after a lease has passed
		d.place(t, customer(orders, ""))
		eventually(t, settleLimit, func() string { // so that few mails wait
			if n := d.value(t, "notification", `SELECT COUNT(*) FROM notification_deliveries WHERE channel = 'email' AND status = 'pending'`); len(n) > 1 {
				return n + " mails are on their way"
			}
			return ""
		})
	}
	d.awaitSettled(t, orders)
	twice := 0
	for i := range orders {
		if n := len(list[mail](t, d, "/mail/messages", "to", customer(i, "").CustomerEmail)); n != 2 {
			twice++
		}
	}
	if stolen := d.value(t, "notification", `SELECT COUNT(*) FROM notification_deliveries WHERE attempts > 1`); twice != 0 || stolen != "0" {
		t.Errorf("of %d customers %d did not get two mails, and %s deliveries were taken from a living process", orders, twice, stolen)
	}
	t.Logf("%d orders, each with two mails", orders)
}

// TestClockIsSet sets the clock while provider, mail server and SMS gateway are
// away: the payment gets its attempt, no message is given up, and no retry waits
// until the clock is right again.
func TestClockIsSet(t *testing.T) {
	t.Parallel()
	for _, engine := range []sqldb.Engine{sqldb.SQLite, sqldb.Postgres} {
		for _, by := range []time.Duration{20 * time.Minute, 25 * time.Hour, -20 * time.Minute, -25 * time.Hour} {
			t.Run(fmt.Sprint(engine, by), func(t *testing.T) {
				t.Parallel()
				d := clocked(t, engine, "broker", ourServices, "sandbox")
				d.start("broker", "sandbox")
				sandbox, smtp := d.process("sandbox").address("SANDBOX_ADDR"), d.process("sandbox").address("SANDBOX_SMTP_ADDR")
				d.sandbox.Cut()
				d.smtp.Cut()
				d.start(ourServices)
				o := d.place(t, customer(1, ""))
				d.awaitAttempts(t)
				d.setClock(t, ourServices, by)
				tried := d.value(t, "notification", `SELECT SUM(attempts) FROM notification_deliveries`)
				eventually(t, settleLimit, func() string { // by the clock as it is now
					if d.value(t, "notification", `SELECT SUM(attempts) FROM notification_deliveries`) == tried {
						return "no message was tried again"
					}
					return ""
				})
				d.sandbox.Lead(sandbox)
				d.smtp.Lead(smtp)
				d.await(t, o.OrderID, "paid", settleLimit)
				mails, texts := d.awaitMessages(t, customer(1, "").CustomerEmail, guestPhone(1), 2, settleLimit)
				if c := d.charges(t, o.OrderID); succeeded(c) != 1 || len(mails) != 2 || len(texts) != 2 {
					t.Errorf("charges %+v, %d mails, %d SMS; want one and two of each", c, len(mails), len(texts))
				}
			})
		}
	}
}
