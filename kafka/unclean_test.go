package kafka_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"pizzaflow/kafka"
)

// A directory that was not closed says since when it may lack something; one
// that was, or is new, does not.
func TestUncleanSince(t *testing.T) {
	dir, copied := t.TempDir(), filepath.Join(t.TempDir(), "copy")
	began := time.Now().Add(-time.Millisecond)
	start := func(dir string) *kafka.Broker {
		t.Helper()
		b, err := kafka.StartBroker(kafka.BrokerConfig{Dir: dir, Listen: "127.0.0.1:0"})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	stop := func(b *kafka.Broker) {
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
