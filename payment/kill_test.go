package payment

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// doomedService, when set, makes TestKilledAroundTheCharge the process that is
// to die: where the database is, where the bank, and when to die.
const doomedService = "PIZZA_TEST_DOOMED_SERVICE"

// suicidal is the real provider of a process that dies by SIGKILL at its first
// charge: before the request goes out or after the answer came in.
type suicidal struct {
	Provider
	after bool
}

func (s suicidal) Charge(ctx context.Context, c Charge) Answer {
	if s.after {
		s.Provider.Charge(ctx, c)
	}
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Kill()
	}
	if err != nil {
		panic(err)
	}
	select {} // until the signal has come through
}

// TestKilledAroundTheCharge kills a process around its call. Another one takes
// the payment over when the lease has run out, and charges once.
func TestKilledAroundTheCharge(t *testing.T) {
	if doom := os.Getenv(doomedService); doom != "" {
		at := strings.Split(doom, "\n")
		run(t, newService(t, sqltest.Connect(t, at[0]), suicidal{providerAt(t, at[1], time.Minute), at[2] == "after"}, unhurried))
		<-t.Context().Done() // it dies before
	}
	t.Parallel()
	for _, c := range []struct {
		when    string
		taken   int // charges in the ledger when it has died
		history string
	}{
		{"before", 0, "charge unknown, lookup absent, charge captured"},
		{"after", 1, "charge unknown, lookup captured"},
	} {
		for _, engine := range []sqldb.Engine{sqldb.SQLite, sqldb.Postgres} {
			t.Run(c.when+" the provider was called/"+string(engine), func(t *testing.T) {
				t.Parallel()
				url := sqltest.URL(t, engine)
				db := sqltest.Connect(t, url, schemas...)
				b := openBank(t)
				second := newService(t, db, b.provider(), unhurried)
				o := order("")
				accept(t, second, o)

				first := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledAroundTheCharge$", "-test.timeout=120s")
				first.Env = append(os.Environ(), doomedService+"="+strings.Join([]string{url, b.addr, c.when}, "\n"))
				var said bytes.Buffer
				first.Stdout, first.Stderr = &said, &said
				if err := first.Run(); err == nil || first.ProcessState.Exited() {
					t.Fatalf("the first process was not killed: %v\n%s", err, &said)
				}
				if r := readRow(t, db, o.OrderID); r.Status != Processing || history(t, db, r.ID) != "charge open" || len(b.ledger(o.OrderID)) != c.taken {
					t.Errorf("it left the payment %s after %s, with %d charges, want %d", r.Status, history(t, db, r.ID), len(b.ledger(o.OrderID)), c.taken)
				}
				run(t, second)
				awaitFinal(t, db, o)
				if r := audit(t, db, b, o); r.Status != Completed || history(t, db, r.ID) != c.history {
					t.Errorf("%s after %s, want %s", r.Status, history(t, db, r.ID), c.history)
				}
				auditKeys(t, b)
			})
		}
	}
}
