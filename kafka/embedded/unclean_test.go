package embedded_test

import (
	"os"
	"path/filepath"
	"pizzaflow/kafka/embedded"
	"testing"
	"time"
)

// A directory that was not closed says since when it may lack something; one
// that was, or is new, does not.
func TestUncleanSince(t *testing.T) {
	dir, copied := t.TempDir(), filepath.Join(t.TempDir(), "copy")
	began := time.Now().Add(-time.Millisecond)
	start := func(dir string) *embedded.Broker {
		t.Helper()
		b, err := embedded.Start(embedded.Config{Dir: dir, Listen: "127.0.0.1:0"})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	stop := func(b *embedded.Broker) {
		t.Helper()
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	b := start(dir)
	if s := b.UncleanSince(); !s.IsZero() {
		t.Errorf("a new directory is unclean since %v", s)
	}
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil { // what a crash leaves
		t.Fatal(err)
	}
	stop(b)
	b = start(dir)
	if s := b.UncleanSince(); !s.IsZero() {
		t.Errorf("after a clean stop: unclean since %v", s)
	}
	stop(b)
	b = start(copied)
	if s := b.UncleanSince(); s.Before(began) || s.After(time.Now()) {
		t.Errorf("after a crash: unclean since %v, it began at %v", s, began)
	}
	stop(b)
	b = start(copied)
	if s := b.UncleanSince(); !s.IsZero() {
		t.Errorf("once it was closed: unclean since %v", s)
	}
	stop(b)
}

// Of a process that is always killed each start makes up for the last moments of the one before, and not for more; for
// what there was to make up for when it was killed before that was sure, too.
func TestTheMarkMoves(t *testing.T) {
	dir := t.TempDir()
	var sure time.Time // up to when nothing is in doubt
	for kill := range 4 {
		b, err := embedded.Start(embedded.MarkEvery(embedded.Config{Dir: dir, Listen: "127.0.0.1:0"}, 10*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		if since := b.UncleanSince(); kill > 0 && since.Before(sure) {
			t.Errorf("after %d kills: unclean since %v, and it was whole at %v", kill, since, sure)
		}
		mark := func() time.Time {
			at, err := os.ReadFile(filepath.Join(dir, "running"))
			if err != nil {
				t.Fatal(err)
			}
			since, err := time.Parse(time.RFC3339Nano, string(at))
			if err != nil {
				t.Fatal(err)
			}
			return since
		}
		before, began := mark(), time.Now()
		if kill == 2 { // killed before everybody has made up for it
			eventually(t, "some marks are due", func() bool { return time.Since(began) > 50*time.Millisecond })
			if !mark().Equal(before) {
				t.Error("the mark moved although not all was made up for")
			}
		} else {
			if err := b.MadeUp(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the mark moves", func() bool { return mark().After(began) })
			sure = began
		}
		var killed string
		eventually(t, "what a kill leaves is copied", func() bool { // between two writes
			killed = filepath.Join(t.TempDir(), "killed")
			return os.CopyFS(killed, os.DirFS(dir)) == nil
		})
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		dir = killed
	}
}
