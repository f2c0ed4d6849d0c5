package order

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"

	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// wantWhole wants n orders in the database, and each of them complete.
func (f *fixture) wantWhole(n int) {
	f.t.Helper()
	if got := f.count(`SELECT COUNT(*) FROM orders`); got != n {
		f.t.Errorf("%d orders, want %d", got, n)
	}
	for _, table := range []string{"order_items", "order_history"} {
		if got := f.count(`SELECT COUNT(*) FROM orders o JOIN ` + table + ` x ON x.order_id = o.id`); got != n {
			f.t.Errorf("%d orders of %d have %s", got, n, table)
		}
	}
	text := "o.id"
	if f.db.Engine == sqldb.Postgres {
		text = "o.id::text"
	}
	if got := f.count(`SELECT COUNT(*) FROM orders o JOIN outbox_events e ON e.aggregate_id = ` + text + ` AND e.aggregate_version = 1`); got != n {
		f.t.Errorf("%d orders of %d have their event", got, n)
	}
	if got := f.count(`SELECT COUNT(*) FROM outbox_events`); got != n {
		f.t.Errorf("%d events of %d orders", got, n)
	}
}

// wantStored wants the order of a 201 in the database.
func (f *fixture) wantStored(r reply) {
	f.t.Helper()
	var v createdView
	decode(f.t, r.body, &v)
	if n := f.count(`SELECT COUNT(*) FROM orders WHERE id = $1 AND order_number = $2`, v.OrderID, v.OrderNumber); n != 1 {
		f.t.Errorf("answered 201, and not in the database like that: %s", r.body)
	}
}

// TestPlaceGroup places two hundred orders at once: many keys come two or
// three times, one of those with another body, and each number is drawn thrice.
func TestPlaceGroup(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		f := newFixture(t, db, Config{})
		var draws atomic.Int64
		f.drawNumber = func() string { return fmt.Sprintf("%08d", draws.Add(1)/3) }
		const n, keys = 200, 120
		var mu sync.Mutex
		answers, fresh, conflicts := map[string]string{}, 0, 0
		var accepted []reply
		f.parallel(n, func(i int) (reply, error) {
			key, body := fmt.Sprint("key-", i%keys), sample
			other := i >= keys && i%5 == 0
			if other {
				body += " "
			}
			r, err := f.try("POST", "/api/v1/orders", body, "Idempotency-Key", key)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
			case r.StatusCode == http.StatusCreated && answers[key] != "" && answers[key] != string(r.body):
				t.Errorf("two answers to %s:\n%s\n%s", key, answers[key], r.body)
			case r.StatusCode == http.StatusCreated:
				answers[key] = string(r.body)
				accepted = append(accepted, r)
				if r.Header.Get("Idempotent-Replayed") == "" {
					fresh++
				}
			case r.StatusCode == http.StatusUnprocessableEntity && i%5 == 0, r.StatusCode == http.StatusConflict:
				conflicts++
			default:
				t.Errorf("%d: %d %s", i, r.StatusCode, r.body)
			}
			return r, err
		})
		for _, r := range accepted {
			f.wantStored(r)
		}
		if fresh != keys || len(answers) != keys {
			t.Errorf("%d new orders and %d answers, want %d; %d conflicts", fresh, len(answers), keys, conflicts)
		}
		f.wantWhole(keys)
	}, schemas...)
}

// TestGroupOfEachKind has requests of each kind wait for the database, so that
// their orders are stored together: each is stored or refused by itself, and only
// an order whose number is taken gets another one.
func TestGroupOfEachKind(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		f := newFixture(t, db, Config{})
		f.drawNumber = func() string { return "222-2222" }
		_, taken := f.place(sample, "Idempotency-Key", "taken")
		f.drawNumber = newNumber
		f.place(sample, "Idempotency-Key", "expired")
		f.exec(`UPDATE idempotency_keys SET created_at = $1 WHERE key = 'expired'`, sqldb.Now().Add(-keyLifetime))
		if err := f.expireKeys(t.Context()); err != nil {
			t.Fatal(err)
		}

		requests := []struct{ key, number, body string }{
			{"", "333-3330", sample}, // two transactions wait for the table, and the other requests for those
			{"", "333-3336", sample},
			{"twice", "333-3331", sample},
			{"", "222-2222", sample},
			{"taken", "333-3332", sample},
			{"expired", "333-3333", sample},
			{"twice", "333-3334", sample},
			{"new", "222-2222", sample},
			{"", "444-4444", sample},
			{"taken", "333-3335", sample + " "},
			{"", "444-4444", sample},
		}
		var draws, waiting atomic.Int32
		f.drawNumber = func() string {
			n := int(draws.Add(1))
			if n > len(requests) {
				return fmt.Sprintf("555-%04d", n)
			}
			return requests[n-1].number
		}
		put := f.put
		f.put = func(ctx context.Context, o *newOrder) (error, error) {
			waiting.Add(1)
			return put(ctx, o)
		}
		replies := make([]reply, len(requests))
		release := sqltest.Hold(t, db, "orders")
		var wg sync.WaitGroup
		for i, r := range requests {
			wg.Go(func() {
				var err error
				headers := []string{"Idempotency-Key", r.key}
				if r.key == "" {
					headers = nil
				}
				if replies[i], err = f.try("POST", "/api/v1/orders", r.body, headers...); err != nil {
					t.Error(err)
				}
			})
			eventually(t, "the order waits", func() bool { return int(waiting.Load()) == i+1 })
		}
		release()
		wg.Wait()
		if t.Failed() {
			return
		}

		for i, r := range replies {
			want, replayed := http.StatusCreated, ""
			switch i {
			case 4, 6:
				replayed = "true"
			case 9:
				want = http.StatusUnprocessableEntity
			}
			if r.StatusCode != want || r.Header.Get("Idempotent-Replayed") != replayed {
				t.Errorf("request %d: %d, replayed %q, want %d and %q", i, r.StatusCode, r.Header.Get("Idempotent-Replayed"), want, replayed)
			}
			if want == http.StatusCreated {
				f.wantStored(r)
			}
		}
		if !bytes.Equal(replies[4].body, taken.body) || !bytes.Equal(replies[6].body, replies[2].body) {
			t.Error("a key has two answers")
		}
		if redrawn := int(draws.Load()) - len(requests); redrawn != 3 {
			t.Errorf("%d numbers were drawn again, want 3", redrawn)
		}
		f.wantWhole(2 + 8)
	}, schemas...)
}

var validDraft = Draft{
	Name: "Иван Иванов", Email: "ivan@example.com", Phone: "+7-900-123-45-67", Address: "ул. Пушкина, д. 10",
	Locale: "ru", Lines: []Line{{PizzaID: margherita, Quantity: 2, Size: "large"}},
}

// TestPlaceWhileTheDatabaseFails repeats requests while the database fails: they are
// answered 201 and the order is there, or 503, and in the end each key stands for one
// order.
func TestPlaceWhileTheDatabaseFails(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		f := newFixture(t, db, Config{})
		answered, broken := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(broken)
			f.breakAt(answered)
		}()
		const n = 32
		var refused atomic.Int64
		replies := f.parallel(n, func(i int) (reply, error) {
			for try := 0; ; try++ {
				r, err := f.try("POST", "/api/v1/orders", sample, "Idempotency-Key", fmt.Sprint("key-", i))
				select {
				case answered <- struct{}{}:
				default:
				}
				switch {
				case err != nil:
					return r, err
				case r.StatusCode == http.StatusCreated && try >= 10: // again and again: the key stands
					return r, nil
				case r.StatusCode == http.StatusServiceUnavailable && r.Header.Get("Retry-After") != "":
					refused.Add(1)
				case r.StatusCode != http.StatusCreated && r.StatusCode != http.StatusConflict:
					return r, fmt.Errorf("%d %s", r.StatusCode, r.body)
				}
			}
		})
		close(answered)
		<-broken
		for _, r := range replies {
			f.wantStored(r)
		}
		if refused.Load() == 0 && db.Engine == sqldb.SQLite { // PostgreSQL's pool may be lucky
			t.Error("the disk was never full")
		}
		f.wantWhole(n)
		f.wantRows(n, n, n, n, n)
	}, schemas...)
}

// breakAt lets the database fail each time: PostgreSQL loses half of its
// sessions, SQLite finds its disk full.
func (f *fixture) breakAt(times <-chan struct{}) {
	for range times {
		if f.db.Engine == sqldb.Postgres {
			f.tryExec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE application_name = current_setting('application_name') AND pid <> pg_backend_pid() AND random() < 0.5`)
			continue
		}
		f.tryExec(`PRAGMA max_page_count = 1`)
		<-times // some requests later
		f.tryExec(`PRAGMA max_page_count = 1000000`)
	}
}

func (f *fixture) tryExec(query string) {
	if _, err := f.db.ExecContext(f.t.Context(), query); err != nil && !sqldb.IsUnavailable(err) {
		f.t.Error(err)
	}
}

// TestAnswerOfTheCommitIsLost cuts the connection around the commit. The order is
// stored once, and the answer is 201, or 503 when the database cannot be asked.
func TestAnswerOfTheCommitIsLost(t *testing.T) {
	target := sqltest.URL(t, sqldb.Postgres)
	for _, tc := range []struct {
		name    string
		forward bool // the server gets the commit
		away    bool // and cannot be reached any more
		status  int
	}{
		{"after it", true, false, http.StatusCreated},
		{"before it", false, false, http.StatusCreated},
		{"after it, and for good", true, true, http.StatusServiceUnavailable},
		{"before it, and for good", false, true, http.StatusServiceUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			direct := newFixture(t, sqltest.Connect(t, target, schemas...), Config{})
			before := direct.count(`SELECT COUNT(*) FROM orders`)
			p := newProxy(t, target)
			f := newFixture(t, sqltest.Connect(t, p.url), Config{})
			f.place(sample) // so that the pool has a connection
			key := fmt.Sprintf("key-%t-%t", tc.forward, tc.away)
			p.cut(tc.forward, tc.away)
			r := f.do("POST", "/api/v1/orders", sample, "Idempotency-Key", key)
			if r.StatusCode != tc.status {
				t.Errorf("%d %s, want %d", r.StatusCode, r.body, tc.status)
			}
			if r.StatusCode == http.StatusCreated {
				direct.wantStored(r)
			}
			p.heal()
			again := f.do("POST", "/api/v1/orders", sample, "Idempotency-Key", key)
			if again.StatusCode != http.StatusCreated || r.StatusCode == http.StatusCreated && string(again.body) != string(r.body) {
				t.Errorf("the key says %d %s", again.StatusCode, again.body)
			}
			if got := again.Header.Get("Idempotent-Replayed") == "true"; got != (tc.forward || !tc.away) {
				t.Errorf("replayed: %t", got)
			}
			direct.wantWhole(before + 2)
		})
	}
}

// A proxy stands between a pool and PostgreSQL and can cut the connection that
// commits.
type proxy struct {
	url, server string
	mu          sync.Mutex
	armed       bool
	forward     bool
	away        bool // after the cut
	down        bool
}

func newProxy(t *testing.T, target string) *proxy {
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{server: u.Host}
	u.Host = l.Addr().String()
	p.url = u.String()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() { l.Close() })
	return p
}

func (p *proxy) cut(forward, away bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed, p.forward, p.away = true, forward, away
}

func (p *proxy) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = false
}

// fires reports whether the connection is to be cut at this message.
func (p *proxy) fires(message []byte) (cut, forward bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.armed || !bytes.Contains(message, []byte("commit")) {
		return false, false
	}
	p.armed, p.down = false, p.away
	return true, p.forward
}

func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	p.mu.Lock()
	down := p.down
	p.mu.Unlock()
	if down {
		return
	}
	server, err := net.Dial("tcp", p.server)
	if err != nil {
		return
	}
	defer server.Close()
	var lost atomic.Bool // the server's answers are
	answered := make(chan struct{}, 1)
	go func() {
		defer client.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := server.Read(buf)
			if lost.Load() {
				answered <- struct{}{}
				return
			}
			if err != nil {
				return
			}
			if _, err := client.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := client.Read(buf)
		if err != nil {
			return
		}
		if cut, forward := p.fires(buf[:n]); cut {
			if forward {
				lost.Store(true)
				if _, err := server.Write(buf[:n]); err == nil {
					<-answered
				}
			}
			return
		}
		if _, err := server.Write(buf[:n]); err != nil {
			return
		}
	}
}
