package order

import (
	"bytes"
	"errors"
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

// wantStored wants what a 201 said to be in the database.
func (f *fixture) wantStored(r reply) {
	f.t.Helper()
	var v createdView
	decode(f.t, r.body, &v)
	if n := f.count(`SELECT COUNT(*) FROM orders WHERE id = $1 AND order_number = $2`, v.OrderID, v.OrderNumber); n != 1 {
		f.t.Errorf("told 201, and not there as told: %s", r.body)
	}
}

// TestPlaceGroup places two hundred orders at once: many keys come two or
// three times, one of those with another body, and each number is drawn thrice.
func TestPlaceGroup(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		f := newFixture(t, db, Config{})
		var draws atomic.Int64
		f.number = func() string { return fmt.Sprintf("%08d", draws.Add(1)/3) }
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

// TestStoreOneByOne looks into one group: each order stands or falls by
// itself.
func TestStoreOneByOne(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		f := newFixture(t, db, Config{})
		f.number = func() string { return "222-2222" }
		f.place(sample, "Idempotency-Key", "taken")
		f.number = newNumber
		f.place(sample, "Idempotency-Key", "expired")
		f.exec(`UPDATE idempotency_keys SET created_at = $1 WHERE key = 'expired'`, sqldb.Now().Add(-keyLifetime))
		if err := f.expireKeys(t.Context()); err != nil {
			t.Fatal(err)
		}

		group := make([]*newOrder, 0, 8)
		for _, key := range []string{"twice", "", "taken", "expired", "twice", "new", "", "taken"} {
			o, err := f.newOrder(t.Context(), Placement{Draft: validDraft, Key: key, Body: []byte(sample)})
			if err != nil {
				t.Fatal(err)
			}
			group = append(group, o)
		}
		before := f.count(`SELECT COUNT(*) FROM orders`)
		group[1].Number, group[5].Number = "222-2222", "222-2222" // one is taken, and twice in the group
		kept := group[6].Number
		reasons, err := f.store(t.Context(), group)
		if err != nil {
			t.Fatal(err)
		}
		want := []error{nil, nil, errKeyTaken, nil, errKeyTaken, nil, nil, errKeyTaken}
		for i, o := range group {
			if !errors.Is(reasons[i], want[i]) {
				t.Errorf("order %d: %v, want %v", i, reasons[i], want[i])
			}
			stored := f.count(`SELECT COUNT(*) FROM orders WHERE id = $1 AND order_number = $2`, o.ID, o.Number)
			if stored != 1 && want[i] == nil || stored != 0 && want[i] != nil {
				t.Errorf("order %d is there %d times", i, stored)
			}
			if want[i] == nil && !bytes.Contains(o.answer, []byte(o.Number)) {
				t.Errorf("order %d has number %s, its answer is %s", i, o.Number, o.answer)
			}
		}
		if group[6].Number != kept {
			t.Error("an order whose number was free drew again")
		}
		if n := f.count(`SELECT COUNT(*) FROM idempotency_keys k JOIN orders o ON o.id = k.order_id
			WHERE k.key = 'expired' AND o.id = $1`, group[3].ID); n != 1 {
			t.Error("the expired key does not stand for the new order")
		}
		f.wantWhole(before + 5)
	}, schemas...)
}

var validDraft = Draft{
	Name: "Иван Иванов", Email: "ivan@example.com", Phone: "+7-900-123-45-67", Address: "ул. Пушкина, д. 10",
	Locale: "ru", Lines: []Line{{PizzaID: margherita, Quantity: 2, Size: "large"}},
}

// TestPlaceWhileTheDatabaseFails repeats requests while the database fails: what was
// answered 201 is there, what was answered otherwise was answered 503, and in
// the end each key stands for one order.
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

// TestAnswerOfTheCommitIsLost cuts the connection around the commit. The
// order is stored once and the customer is told so, or told that nobody knows.
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
