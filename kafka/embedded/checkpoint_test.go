package embedded_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"pizzaflow/kafka/embedded"
)

// A directory that was not closed cleanly has a time from which on records may be
// missing; one that was, or is new, has none.
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
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil { // as a crash leaves it
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
