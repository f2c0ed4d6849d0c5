//go:build synctests

package embedded_test

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"pizzaflow/kafka/embedded"
	"pizzaflow/kafka/kafkatest"
)

// After each kill of a process that is always killed, only the records of its last 25 s are in doubt: those of five
// seconds, and of the 20 s between two checkpoints. After a kill before MarkRecovered it is those of the kill before,
// too.
func TestTheCheckpointAdvances(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const inDoubt = 25 * time.Second
		dir, began := t.TempDir(), time.Now()
		var complete time.Time // the checkpoint that the next start must find, or a later one
		for kill := range 4 {
			b, err := embedded.Start(embedded.Config{Dir: dir, ListenFn: kafkatest.NewNetwork().Listen})
			if err != nil {
				t.Fatal(err)
			}
			since := b.UncleanSince()
			if kill == 0 && !since.IsZero() || kill > 0 && (since.Before(complete) || since.After(time.Now())) {
				t.Errorf("after %d kills and %s: unclean since %v, want %v or later", kill, time.Since(began), since, complete)
			}
			if kill != 2 {
				if err := b.MarkRecovered(); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(61 * time.Second) // virtual
			if kill == 2 {
				complete = since
			} else {
				complete = time.Now().Add(-inDoubt)
			}
			killed := filepath.Join(t.TempDir(), "killed")
			if err := os.CopyFS(killed, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			if kill == 2 {
				b, err := embedded.Start(embedded.Config{Dir: killed, ListenFn: kafkatest.NewNetwork().Listen})
				if err != nil {
					t.Fatal(err)
				}
				if again := b.UncleanSince(); !again.Equal(since) {
					t.Errorf("without MarkRecovered the checkpoint advanced from %v to %v", since, again)
				}
				if err := os.CopyFS(killed+" again", os.DirFS(killed)); err != nil {
					t.Fatal(err)
				}
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				killed += " again"
			}
			dir = killed
		}
	})
}
