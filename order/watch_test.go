package order

import (
	"context"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"pizzaflow/outbox"
	"pizzaflow/sqldb"
)

// An order that looks overdue, and a key that looks expired, when the process
// starts or the clock was set, are given some time: the order is marked after a
// minute, and the key is removed after an hour.
func TestWhatTheClockMadeOldIsGivenTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, err := sqldb.Open(context.Background(), "sqlite:"+filepath.Join(t.TempDir(), "test.db"))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range schemas {
			if err := db.Migrate(context.Background(), s.Name, s.FS); err != nil {
				t.Fatal(err)
			}
		}
		ctx, stop := context.WithCancel(t.Context())
		s, err := New(Config{Outbox: outbox.New(db, "/order-service")})
		if err != nil {
			t.Fatal(err)
		}
		place := func(key string) {
			t.Helper()
			if _, err := s.Place(ctx, Placement{Draft: validDraft, Key: key, Body: []byte(sample)}); err != nil {
				t.Fatal(err)
			}
		}
		state := func() (marked, keys int) {
			t.Helper()
			err := db.Read().QueryRow(`SELECT (SELECT COUNT(*) FROM orders WHERE attention_reason IS NOT NULL), (SELECT COUNT(*) FROM idempotency_keys)`).Scan(&marked, &keys)
			if err != nil {
				t.Fatal(err)
			}
			return marked, keys
		}
		want := func(when string, marked, keys int) {
			t.Helper()
			if m, k := state(); m != marked || k != keys {
				t.Errorf("%s: %d orders are marked and %d keys are there, want %d and %d", when, m, k, marked, keys)
			}
		}
		place("one")
		time.Sleep(25 * time.Hour) // virtual: nobody ran
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		time.Sleep(50 * time.Second)
		want("a while after the start", 0, 1)
		place("one") // is repeated
		time.Sleep(time.Minute)
		want("a minute after the start", 1, 1)
		time.Sleep(2 * time.Hour)
		want("hours after the start", 1, 0)
		place("two")
		time.Sleep(31 * time.Minute)
		want("after the deadline", 2, 1)
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
}
