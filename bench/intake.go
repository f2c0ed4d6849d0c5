package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"pizzaflow/event"
	"pizzaflow/order"
	"pizzaflow/outbox"
	"pizzaflow/sqldb"
)

type intakeOrder struct {
	URL     string
	Single  bool // one transaction for each order, written by hand
	HTTP    bool // over a socket, client and server in one process
	Clients int
	Length  time.Duration
	Profile string // the file for one; none when empty
}

// An intakeResult is what a closed loop of clients came to.
type intakeResult struct {
	Orders    int
	PerSecond float64
	P50, P99  time.Duration
	Stored    int // with those that warmed it up

	effort effort // for all that are stored, the clients' in ours
}

// intakePart places orders with 32 clients, each of whom waits for his 201.
func intakePart(ctx context.Context, b *bench) error {
	kinds := []struct {
		name  string
		order intakeOrder
	}{
		{"one transaction per order", intakeOrder{Single: true}},
		{"ours", intakeOrder{}},
		{"ours, over HTTP", intakeOrder{HTTP: true}},
	}
	var errs []error
	for _, engine := range []string{"PostgreSQL", "SQLite"} {
		rounds := map[string][]intakeResult{}
		for range b.size.rounds {
			for _, k := range kinds {
				if ctx.Err() != nil {
					return errors.Join(append(errs, ctx.Err())...)
				}
				k.order.Clients, k.order.Length = 32, b.size.intake
				got, err := b.takeIn(ctx, engine, k.order)
				if err != nil {
					errs = append(errs, fmt.Errorf("%s on %s: %w", k.name, engine, err))
					b.say("  FAILED %v", err)
					continue
				}
				b.say("  %s, %s: %s orders/s, p50 %s, p99 %s", engine, k.name, group(got.PerSecond), ms(got.P50), ms(got.P99))
				rounds[k.name] = append(rounds[k.name], got)
			}
		}
		b.intakeTable(engine, rounds)
		if err := b.profileIntake(ctx, engine); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (b *bench) takeIn(ctx context.Context, engine string, order intakeOrder) (got intakeResult, err error) {
	if order.URL, err = b.emptyDatabase(ctx, engine, "intake"); err != nil {
		return got, err
	}
	c, err := b.role(ctx, "intake", order)
	if err != nil {
		return got, err
	}
	spent, err := b.spend(c.cmd.Process.Pid, 0)
	if err == nil {
		err = c.read(&got)
	}
	if err == nil {
		got.effort, err = spent()
	}
	_, e := c.stop()
	return got, errors.Join(err, e)
}

// profileIntake tells where the processor time of ours goes, in a run of its own.
func (b *bench) profileIntake(ctx context.Context, engine string) error {
	file := b.path("intake.pprof")
	got, err := b.takeIn(ctx, engine, intakeOrder{Clients: 32, Length: b.size.intake, Profile: file})
	if err != nil {
		return fmt.Errorf("profile intake on %s: %w", engine, err)
	}
	profiled, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("profile intake on %s: %w", engine, err)
	}
	return b.report.fieldTable("ours, "+engine, profiled, got.Stored)
}

// emptyDatabase makes a new one.
func (b *bench) emptyDatabase(ctx context.Context, engine, name string) (string, error) {
	if engine == "SQLite" {
		return "sqlite:" + b.path(fmt.Sprintf("%s-%d.db", name, time.Now().UnixNano())), nil
	}
	return b.createDatabase(ctx, name, "")
}

// playIntake is the order service and its customers.
func playIntake(ctx context.Context, text json.RawMessage, _ func(any) error) (_ any, err error) {
	var o intakeOrder
	if err := json.Unmarshal(text, &o); err != nil {
		return nil, err
	}
	db, out, err := openOrders(ctx, o.URL)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	handler, err := intakeHandler(db, out, o.Single)
	if err != nil {
		return nil, err
	}
	place := direct(handler)
	if o.HTTP {
		served, stop, err := overHTTP(ctx, handler, o.Clients)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, stop()) }()
		place = served
	}
	stop, err := profileTo(o.Profile)
	if err != nil {
		return nil, err
	}
	got, err := customers(ctx, place, o.Clients, o.Length)
	if err := errors.Join(err, stop()); err != nil {
		return nil, err
	}
	// nothing counts that is not in the database
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM orders`).Scan(&got.Stored); err != nil {
		return nil, err
	}
	if got.Stored < got.Orders {
		return nil, fmt.Errorf("%d orders were accepted and %d are stored", got.Orders, got.Stored)
	}
	return got, nil
}

// openOrders opens a database with the tables of the order service.
func openOrders(ctx context.Context, url string) (*sqldb.DB, *outbox.Outbox, error) {
	db, err := sqldb.Open(ctx, url)
	if err != nil {
		return nil, nil, err
	}
	err = errors.Join(db.Migrate(ctx, "outbox", outbox.Schema), db.Migrate(ctx, "order", order.Schema))
	if err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	return db, outbox.New(db, "/order-service"), nil
}

// intakeHandler is the order API: our service's, or one written by hand.
func intakeHandler(db *sqldb.DB, out *outbox.Outbox, single bool) (http.Handler, error) {
	service, err := order.New(order.Config{Outbox: out})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	service.Routes(mux)
	if !single {
		return mux, nil
	}
	byHand := http.NewServeMux()
	byHand.Handle("GET /api/v1/menu", mux)
	byHand.HandleFunc("POST /api/v1/orders", func(w http.ResponseWriter, r *http.Request) { placeByHand(w, r, db, outboxInsert) })
	return byHand, nil
}

// literalIntake stores orders by hand, their events for the literal loop.
func literalIntake(db *sqldb.DB, menu http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /api/v1/menu", menu)
	mux.HandleFunc("POST /api/v1/orders", func(w http.ResponseWriter, r *http.Request) { placeByHand(w, r, db, literalInsert) })
	return mux
}

const outboxInsert = `INSERT INTO outbox_events (id, aggregate_id, aggregate_version, event_type, event_data, topic, key, headers, created_at)
	VALUES ($1, $2, 1, 'OrderCreated', $3, 'order-events', $4, '[]', $5)`

// placeByHand stores an order in a transaction of its own: the same rows as
// our service, one statement for each table.
func placeByHand(w http.ResponseWriter, r *http.Request, db *sqldb.DB, outboxInsert string) {
	var in struct {
		CustomerName    string       `json:"customer_name"`
		CustomerEmail   string       `json:"customer_email"`
		CustomerPhone   string       `json:"customer_phone"`
		Items           []event.Item `json:"items"`
		DeliveryAddress string       `json:"delivery_address"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	o := event.OrderCreated{
		OrderID: newID(), CustomerName: in.CustomerName, CustomerEmail: in.CustomerEmail, CustomerPhone: in.CustomerPhone,
		Items: in.Items, DeliveryAddress: in.DeliveryAddress, Currency: "RUB", Locale: "en", CreatedAt: sqldb.Now(),
	}
	o.OrderNumber = o.OrderID // unique, as ours is
	for i := range o.Items {
		o.Items[i].Name, o.Items[i].Price = "Margherita", 60000
		o.TotalAmount += o.Items[i].Price * event.Money(o.Items[i].Quantity)
	}
	data, err := json.Marshal(o)
	if err == nil {
		err = db.Tx(r.Context(), func(tx *sql.Tx) error { return insertByHand(r.Context(), tx, o, string(data), outboxInsert) })
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_, _ = w.Write(data) // who has gone needs no answer
}

func insertByHand(ctx context.Context, tx *sql.Tx, o event.OrderCreated, data, outboxInsert string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO orders (id, order_number, status, version, total_amount, currency, customer_name,
		customer_email, customer_phone, delivery_address, comment, locale, created_at)
		VALUES ($1, $2, 'pending', 1, $3, $4, $5, $6, $7, $8, '', $9, $10)`, o.OrderID, o.OrderNumber, o.TotalAmount, o.Currency,
		o.CustomerName, o.CustomerEmail, o.CustomerPhone, o.DeliveryAddress, o.Locale, o.CreatedAt)
	if err != nil {
		return err
	}
	for i, it := range o.Items {
		_, err := tx.ExecContext(ctx, `INSERT INTO order_items (order_id, line, pizza_id, name, size, quantity, price)
			VALUES ($1, $2, $3, $4, $5, $6, $7)`, o.OrderID, i+1, it.PizzaID, it.Name, it.Size, it.Quantity, it.Price)
		if err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO order_history (order_id, version, status, at) VALUES ($1, 1, 'pending', $2)`, o.OrderID, o.CreatedAt); err != nil {
		return err
	}
	args := []any{newID(), o.OrderID, data, []byte(o.OrderID), o.CreatedAt}
	if outboxInsert == literalInsert {
		args = []any{args[0], o.OrderID, data, o.CreatedAt}
	}
	_, err = tx.ExecContext(ctx, outboxInsert, args...)
	return err
}

// A placer sends one order and returns when it is answered.
type placer func(ctx context.Context, method, path string, body []byte) (status int, answer []byte, err error)

// direct calls the handler without a socket.
func direct(h http.Handler) placer {
	return func(ctx context.Context, method, path string, body []byte) (int, []byte, error) {
		r, err := http.NewRequestWithContext(ctx, method, path, bytes.NewReader(body))
		if err != nil {
			return 0, nil, err
		}
		r.Header.Set("Content-Type", "application/json")
		w := answer{header: http.Header{}}
		h.ServeHTTP(&w, r)
		return w.status, w.body.Bytes(), nil
	}
}

// answer is where a handler writes to.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) { a.status = status }

func (a *answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	return a.body.Write(p)
}

// overHTTP serves the handler on a socket and calls it there.
func overHTTP(ctx context.Context, h http.Handler, clients int) (placer, func() error, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	var serving errgroup.Group
	serving.Go(func() error { return server.Serve(ln) })
	stop := func() error {
		err := server.Close()
		if e := serving.Wait(); !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
		return err
	}
	return web("http://"+ln.Addr().String(), clients), stop, nil
}

// web calls an address, over at most so many connections, which are kept.
func web(base string, connections int) placer {
	c := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: connections, MaxIdleConns: connections}}
	return func(ctx context.Context, method, path string, body []byte) (int, []byte, error) {
		r, err := http.NewRequestWithContext(ctx, method, base+path, bytes.NewReader(body))
		if err != nil {
			return 0, nil, err
		}
		r.Header.Set("Content-Type", "application/json")
		resp, err := c.Do(r)
		if err != nil {
			return 0, nil, err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return resp.StatusCode, text, err
	}
}

// requests makes bodies of orders, two pizzas each, from the menu.
func requests(ctx context.Context, place placer) (func(n int) []byte, error) {
	status, text, err := place(ctx, http.MethodGet, "/api/v1/menu?lang=en", nil)
	if err != nil || status != http.StatusOK {
		return nil, fmt.Errorf("read the menu: status %d: %w", status, err)
	}
	var menu struct {
		Pizzas []struct {
			ID        string `json:"id"`
			Available bool   `json:"available"`
		} `json:"pizzas"`
	}
	if err := json.Unmarshal(text, &menu); err != nil || len(menu.Pizzas) < 2 {
		return nil, fmt.Errorf("read the menu: %d pizzas: %w", len(menu.Pizzas), err)
	}
	return func(n int) []byte {
		return fmt.Appendf(nil, `{"customer_name": "Guest %d", "customer_email": "guest%d@example.com", "customer_phone": "+7900%07d",
			"items": [{"pizza_id": "%s", "quantity": 2, "size": "large"}, {"pizza_id": "%s", "quantity": 1, "size": "small"}],
			"delivery_address": "ul. Pushkina, d. %d", "locale": "en"}`, n, n, n%10_000_000, menu.Pizzas[0].ID, menu.Pizzas[1].ID, n)
	}, nil
}

// customers place orders one after the other, each his own, until the time is up.
func customers(ctx context.Context, place placer, clients int, length time.Duration) (intakeResult, error) {
	body, err := requests(ctx, place)
	if err != nil {
		return intakeResult{}, err
	}
	var next atomic.Int64
	var mu sync.Mutex
	var took []time.Duration
	var failed error
	round := func(length time.Duration, keep bool) time.Duration {
		var all sync.WaitGroup
		began := time.Now()
		for range clients {
			all.Go(func() {
				var mine []time.Duration
				for time.Since(began) < length && ctx.Err() == nil {
					sent := time.Now()
					status, text, err := place(ctx, http.MethodPost, "/api/v1/orders", body(int(next.Add(1))))
					if err == nil && status != http.StatusCreated {
						err = fmt.Errorf("answer %d: %.200s", status, text)
					}
					if err != nil {
						mu.Lock()
						failed = errors.Join(failed, err)
						mu.Unlock()
						return
					}
					mine = append(mine, time.Since(sent))
				}
				mu.Lock()
				defer mu.Unlock()
				if keep {
					took = append(took, mine...)
				}
			})
		}
		all.Wait()
		return time.Since(began)
	}
	round(min(time.Second, length/4), false) // connections and plans
	spent := round(length, true)
	if err := errors.Join(failed, ctx.Err()); err != nil {
		return intakeResult{}, err
	}
	slices.Sort(took)
	l := lags(took)
	return intakeResult{Orders: len(took), PerSecond: float64(len(took)) / spent.Seconds(), P50: l.at(0.5), P99: l.at(0.99)}, nil
}
