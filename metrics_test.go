package pizzaflow

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/event"
	"pizzaflow/internal/testkit"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// needNoDatabase are metrics that are shown whatever is away.
var needNoDatabase = []string{
	`go_goroutines`, `process_cpu_seconds_total`, `go_sql_in_use_connections{db_name="order"}`,
	`pizza_orders_total{status="paid"}`, `pizza_payments_total{result="completed"}`, `pizza_frontend_tailing`,
	`pizza_notification_deliveries_total{channel="email",result="sent"}`, `pizza_outbox_published_total{service="order"}`,
	`pizza_outbox_leader{service="payment"}`, `pizza_consumer_paused{group="notification-service"}`,
	`pizza_consumer_lag{group="payment-service",partition="0",topic="order-events"}`,
}

// needDatabase are metrics that are queried from a database, each with the counter of its failures.
var needDatabase = map[string]string{
	`pizza_dead_letters{group="order-service",topic="payment-events"}`: `pizza_metrics_errors_total{metric="dead_letters",service="order-service"}`,
	`pizza_orders_attention{reason="payment_overdue"}`:                 `pizza_metrics_errors_total{metric="orders_attention",service="order"}`,
	`pizza_payments_unanswered{status="unknown"}`:                      `pizza_metrics_errors_total{metric="payments_unanswered",service="payment"}`,
	`pizza_notification_deliveries_waiting{channel="sms"}`:             `pizza_metrics_errors_total{metric="notification_deliveries_waiting",service="notification"}`,
}

// While a database is away or refuses, /metrics answers 200 within a second, with all metrics that need no database, and
// counts the others as failed.
func TestMetricsWithoutTheDatabase(t *testing.T) {
	t.Run("all is well", func(t *testing.T) {
		s := startSystem(t)
		s.completeOrder()
		s.until("all metrics are shown", func(page string) string { return missing(page, slices.Concat(needNoDatabase, keys(needDatabase))...) })
		s.until("nothing waits", func(page string) string {
			return missing(page, `pizza_outbox_unpublished{service="order"} 0`, `pizza_outbox_oldest_seconds{service="payment"} 0`,
				`pizza_outbox_leader{service="order"} 1`, `pizza_dead_letters{group="order-service",topic="payment-events"} 0`)
		})
		for line := range strings.Lines(s.scrape()) {
			if strings.Contains(line, "errors_total{") && !strings.HasPrefix(line, "pizza_outbox_") && !strings.HasSuffix(line, " 0\n") {
				t.Errorf("counted: %s", line)
			}
		}
	})
	for name, spoil := range map[string]func(s *system){
		"the server is away":         func(s *system) { s.way.Cut() },
		"its slots are used up":      func(s *system) { s.exec(`ALTER ROLE ` + s.role + ` CONNECTION LIMIT 0`); s.hangUp() },
		"the tables may not be read": (*system).forbid,
	} {
		t.Run(name, func(t *testing.T) {
			s := startSystem(t)
			s.completeOrder()
			spoil(s)
			s.until("what is lacking is counted", func(page string) string {
				for metric, count := range needDatabase {
					if strings.Contains(page, "\n"+metric) {
						return "the page has " + metric
					}
					if strings.Contains(page, "\n"+count+" 0\n") || !strings.Contains(page, "\n"+count+" ") {
						return "the page has no " + count
					}
				}
				return missing(page, needNoDatabase...)
			})
			if name == "the server is away" { // the alert of the documents
				s.repeat()
				s.until("a consumer waits", func(page string) string { return missing(page, `pizza_consumer_paused{group="payment-service"} 1`) })
			}
		})
	}
}

func keys(m map[string]string) (all []string) {
	for k := range m {
		all = append(all, k)
	}
	return all
}

// missing names the first of the wanted metrics that the page lacks.
func missing(page string, wanted ...string) string {
	for _, w := range wanted {
		if !strings.Contains(page, "\n"+w) {
			return "the page lacks " + w
		}
	}
	return ""
}

// A system is all services in one process, on a PostgreSQL behind a proxy that can be cut, as a role whose rights can be taken.
type system struct {
	t     *testing.T
	way   *testkit.Proxy
	db    *sqldb.DB // past the proxy, as the superuser
	role  string
	paths []string // the schema of each service
	out   lockedBuffer
	slow  int // how many pages in a row took more than a second
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func startSystem(t *testing.T) *system {
	t.Helper()
	s := &system{t: t, role: "r_" + strings.ToLower(rand.Text())}
	cfg := usable()
	cfg.DataDir, cfg.MailFrom = t.TempDir(), "orders@pizza.example"
	var through *url.URL
	for _, own := range []*string{&cfg.OrderDatabaseURL, &cfg.PaymentDatabaseURL, &cfg.NotificationDatabaseURL} {
		direct, err := url.Parse(sqltest.URL(t, sqldb.Postgres))
		if err != nil {
			t.Fatal(err)
		}
		if s.db == nil {
			s.db = sqltest.Connect(t, direct.String())
			s.exec(`CREATE ROLE ` + s.role + ` LOGIN`)
			t.Cleanup(func() {
				s.exec(`REASSIGN OWNED BY ` + s.role + ` TO CURRENT_USER`)
				s.exec(`DROP OWNED BY ` + s.role)
				s.exec(`DROP ROLE ` + s.role)
			})
			var rawURL string
			s.way, rawURL = testkit.NewURLProxy(t, direct.String())
			if through, err = url.Parse(rawURL); err != nil {
				t.Fatal(err)
			}
		}
		schema := direct.Query().Get("search_path")
		s.paths = append(s.paths, schema)
		s.exec(`ALTER SCHEMA ` + schema + ` OWNER TO ` + s.role)
		direct.User, direct.Host = url.User(s.role), through.Host
		*own = direct.String()
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, cfg, Host{Stdout: &s.out, Stderr: io.Discard, Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	s.await("the system is ready", func() string {
		if addr := s.address("ADMIN_ADDR"); addr != "" {
			if status, body := s.get(addr, "/readyz"); status != http.StatusOK {
				return body
			}
			return ""
		}
		return "it has not printed its address"
	})
	return s
}

func (s *system) exec(statement string) {
	s.t.Helper()
	if _, err := s.db.ExecContext(context.Background(), statement); err != nil {
		s.t.Fatal(err)
	}
}

// hangUp ends the sessions of the role.
func (s *system) hangUp() {
	s.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '` + s.role + `'`)
}

// forbid takes from the role the right to read the tables that are counted.
func (s *system) forbid() {
	for i, tables := range []string{"orders, parked_records", "payments, parked_records", "notification_deliveries, parked_records"} {
		for table := range strings.SplitSeq(tables, ", ") {
			s.exec(`REVOKE SELECT ON ` + s.paths[i] + `.` + table + ` FROM ` + s.role)
		}
	}
}

// address is the one that the system printed for the option.
func (s *system) address(key string) string {
	for line := range strings.Lines(s.out.String()) {
		if at, is := strings.CutPrefix(line, key+"="); is {
			return strings.TrimSpace(at)
		}
	}
	return ""
}

func (s *system) get(addr, path string) (status int, body string) {
	s.t.Helper()
	res, err := http.Get("http://" + addr + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	read, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return res.StatusCode, string(read)
}

// scrape reads the page, which must come within a second. One or two in a row may be late on a busy machine.
func (s *system) scrape() string {
	s.t.Helper()
	began := time.Now()
	status, body := s.get(s.address("ADMIN_ADDR"), "/metrics")
	took := time.Since(began)
	if s.slow++; took <= time.Second {
		s.slow = 0
	}
	if status != http.StatusOK || s.slow > 2 {
		s.t.Fatalf("/metrics: %d after %v: %s", status, took, body)
	}
	return "\n" + body
}

// until reads the page until wrong returns "".
func (s *system) until(what string, wrong func(page string) string) {
	s.t.Helper()
	s.await(what, func() string { return wrong(s.scrape()) })
}

func (s *system) await(what string, wrong func() string) {
	s.t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		problem := wrong()
		if problem == "" {
			return
		}
		select {
		case <-deadline:
			s.t.Fatalf("not after a minute: %s: %s", what, problem)
		case <-tick.C:
		}
	}
}

// completeOrder places an order and waits until it is paid and its messages are sent.
func (s *system) completeOrder() {
	s.t.Helper()
	_, body := s.get(s.address("HTTP_ADDR"), "/api/v1/menu")
	var menu struct {
		Pizzas []struct {
			ID string `json:"id"`
		} `json:"pizzas"`
	}
	if err := json.Unmarshal([]byte(body), &menu); err != nil {
		s.t.Fatal(err)
	}
	order, err := json.Marshal(map[string]any{
		"customer_name": "Иван Иванов", "customer_email": "ivan@example.com", "customer_phone": "+79031112233", "delivery_address": "ул. Пушкина, д. 10",
		"items": []any{map[string]any{"pizza_id": menu.Pizzas[0].ID, "quantity": 2, "size": "large"}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	res, err := http.Post("http://"+s.address("HTTP_ADDR")+"/api/v1/orders", "application/json", bytes.NewReader(order))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := res.Body.Close(); err != nil || res.StatusCode != http.StatusCreated {
		s.t.Fatalf("POST: %d, %v", res.StatusCode, err)
	}
	s.await("the messages are sent", func() string {
		var n int
		err := s.db.QueryRowContext(s.t.Context(), `SELECT COUNT(*) FROM `+s.paths[2]+`.notification_deliveries WHERE status = 'sent'`).Scan(&n)
		if err != nil || n != 4 {
			return fmt.Sprintf("%d messages are sent, %v", n, err)
		}
		return ""
	})
}

// repeat produces the events of order-events again.
func (s *system) repeat() {
	s.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.address("KAFKA_LISTEN")), kgo.ConsumeTopics(event.OrderTopic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		s.t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	for _, r := range client.PollFetches(ctx).Records() {
		again := &kgo.Record{Topic: r.Topic, Key: r.Key, Value: r.Value, Headers: r.Headers}
		if err := client.ProduceSync(ctx, again).FirstErr(); err != nil {
			s.t.Fatal(err)
		}
	}
}
