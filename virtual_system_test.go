//go:build synctests

package pizzaflow

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/event"
	"pizzaflow/kafka"
	"pizzaflow/kafka/kafkatest"
	"pizzaflow/sqldb"
)

const (
	shopAddr    = "127.0.0.1:8080"
	adminAddr   = "127.0.0.1:8081"
	sandboxAddr = "127.0.0.1:8082"
	smtpAddr    = "127.0.0.1:2525"
	brokerAddr  = "127.0.0.1:9092"
)

// A virtualSystem is a whole system in a bubble, with customers, sandbox and a reader of the topics.
type virtualSystem struct {
	t             *testing.T
	cfg           Config
	net           *kafkatest.Network
	client        *http.Client
	log           *safeBuffer
	orders        []string
	waitedForMore bool // the wait of wantMessages for one message too many is over
}

// open starts the system. It is stopped when the test ends, which must be
// within the bubble.
func open(t *testing.T, change func(*Config)) *virtualSystem {
	t.Helper()
	cfg := usable()
	cfg.DataDir, cfg.MailFrom = t.TempDir(), "orders@pizza.example"
	cfg.HTTPAddr, cfg.AdminAddr, cfg.SandboxAddr, cfg.SandboxSMTPAddr, cfg.KafkaListen = shopAddr, adminAddr, sandboxAddr, smtpAddr, brokerAddr
	cfg.OutboxPollInterval, cfg.RetryDelay = 5*time.Second, 5*time.Second
	cfg.OrderDeadline, cfg.PaymentTTL, cfg.PaymentProviderTimeout = 30*time.Minute, 15*time.Minute, 10*time.Second
	if change != nil {
		change(&cfg)
	}
	w := &virtualSystem{t: t, cfg: cfg, net: kafkatest.NewNetwork(), log: new(safeBuffer)}
	w.net.Latency = func() time.Duration { return 200 * time.Microsecond }
	w.client = &http.Client{Transport: &http.Transport{DialContext: w.net.Dial, DisableKeepAlives: true}}
	w.run()
	t.Cleanup(w.logHistory)
	return w
}

// run runs the system until the test ends, and waits until it is ready.
func (w *virtualSystem) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	log := slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	go func() {
		done <- Run(ctx, w.cfg, Host{Stdout: io.Discard, Stderr: io.Discard, Log: log, Listen: w.net.Listen, Dial: w.net.Dial})
	}()
	w.t.Cleanup(func() {
		w.client.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	w.until("the system is ready", time.Minute, func() bool {
		res, err := w.client.Get("http://" + adminAddr + "/readyz")
		if err != nil {
			return false
		}
		return res.Body.Close() == nil && res.StatusCode == http.StatusOK
	})
}

// until waits for a condition, in virtual time.
func (w *virtualSystem) until(what string, limit time.Duration, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("not after %v: %s", limit, what)
		}
	}
}

// get reads JSON, or text into a string.
func (w *virtualSystem) get(url string, into any) {
	w.t.Helper()
	res, err := w.client.Get("http://" + url)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK {
		w.t.Fatalf("GET %s: %d %s", url, res.StatusCode, body)
	}
	if text, is := into.(*string); is {
		*text = string(body)
	} else if err := json.Unmarshal(body, into); err != nil {
		w.t.Fatalf("GET %s: %v", url, err)
	}
}

func (w *virtualSystem) send(method, url string, body any) []byte {
	w.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		w.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(w.t.Context(), method, "http://"+url, bytes.NewReader(b))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := w.client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode >= 300 {
		w.t.Fatalf("%s %s: %d %s %v", method, url, res.StatusCode, answer, err)
	}
	return answer
}

// place orders a pizza for an e-mail address.
func (w *virtualSystem) place(email string) (id string) {
	w.t.Helper()
	var menu struct {
		Pizzas []struct {
			ID string `json:"id"`
		} `json:"pizzas"`
	}
	w.get(shopAddr+"/api/v1/menu", &menu)
	var placed struct {
		OrderID string `json:"order_id"`
	}
	body := w.send(http.MethodPost, shopAddr+"/api/v1/orders", map[string]any{
		"customer_name": "Иван Иванов", "customer_email": email, "customer_phone": phoneOf(email), "delivery_address": "ул. Пушкина, д. 10",
		"items": []any{map[string]any{"pizza_id": menu.Pizzas[0].ID, "quantity": 2, "size": "large"}},
	})
	if err := json.Unmarshal(body, &placed); err != nil {
		w.t.Fatal(err)
	}
	w.orders = append(w.orders, placed.OrderID)
	return placed.OrderID
}

// phoneOf is a phone number for an e-mail address, mostly another for each.
func phoneOf(email string) string {
	sum := 0
	for _, b := range []byte(email) {
		sum = (sum*31 + int(b)) % 10_000_000
	}
	return fmt.Sprintf("+7900%07d", sum)
}

func (w *virtualSystem) status(id string) string {
	w.t.Helper()
	var order struct {
		Status string `json:"status"`
	}
	w.get(shopAddr+"/api/v1/orders/"+id, &order)
	return order.Status
}

// wantStatus waits until the order has the status.
func (w *virtualSystem) wantStatus(id, status string, limit time.Duration) {
	w.t.Helper()
	w.until("order "+id+" is "+status, limit, func() bool { return w.status(id) == status })
}

type sandboxRow struct {
	IdempotencyKey string    `json:"idempotency_key"`
	OrderReference string    `json:"order_reference"`
	Method         string    `json:"method"`
	Path           string    `json:"path"`
	Status         any       `json:"status"`
	To             any       `json:"to"`
	Subject        string    `json:"subject"`
	Text           string    `json:"text"`
	At             time.Time `json:"received_at"`
}

func (w *virtualSystem) list(path string) (rows []sandboxRow) {
	w.t.Helper()
	w.get(sandboxAddr+path, &rows)
	return rows
}

// charges is how often an order was charged.
func (w *virtualSystem) charges(id string) int {
	w.t.Helper()
	return len(w.list("/payments/charges?order_reference=" + id))
}

// wantMessages waits for so many mails and SMS to a customer, and wants no more.
func (w *virtualSystem) wantMessages(email string, mails, sms int) {
	w.t.Helper()
	phone := phoneOf(email)
	count := func() (int, int) {
		return len(w.list("/mail/messages?to=" + strings.ReplaceAll(email, "+", "%2B"))), len(w.list("/sms/messages?to=%2B" + phone[1:]))
	}
	w.until(fmt.Sprintf("%s got %d mails and %d SMS", email, mails, sms), 5*time.Minute, func() bool {
		m, s := count()
		return m >= mails && s >= sms
	})
	if !w.waitedForMore {
		w.waitedForMore = true
		time.Sleep(2 * time.Minute) // virtual: time for one message too many
	}
	if m, s := count(); m != mails || s != sms {
		w.t.Errorf("%s got %d mails and %d SMS, want %d and %d", email, m, s, mails, sms)
	}
}

// providerRequests counts the requests of a method to the provider.
func (w *virtualSystem) providerRequests(method string) (n int) {
	w.t.Helper()
	for _, r := range w.list("/payments/requests") {
		if r.Method == method {
			n++
		}
	}
	return n
}

func (w *virtualSystem) kafka() kafka.Config {
	return kafka.Config{Brokers: []string{brokerAddr}, Dial: w.net.Dial}
}

// produce sends records as they are.
func (w *virtualSystem) produce(records ...*kgo.Record) {
	w.t.Helper()
	opts, err := w.kafka().Options()
	if err != nil {
		w.t.Fatal(err)
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		w.t.Fatal(err)
	}
	defer client.Close()
	for _, r := range records {
		again := &kgo.Record{Topic: r.Topic, Key: r.Key, Value: r.Value, Headers: r.Headers}
		if err := client.ProduceSync(w.t.Context(), again).FirstErr(); err != nil {
			w.t.Fatal(err)
		}
	}
}

// records are all records of the topics; without names, of the event topics.
func (w *virtualSystem) records(topics ...string) (all []*kgo.Record) {
	w.t.Helper()
	opts, err := w.kafka().Options()
	if err != nil {
		w.t.Fatal(err)
	}
	if len(topics) == 0 {
		topics = event.Topics()
	}
	client, err := kgo.NewClient(append(opts, kgo.ConsumeTopics(topics...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	if err != nil {
		w.t.Fatal(err)
	}
	defer client.Close()
	for { // until a poll is empty
		ctx, cancel := context.WithTimeout(w.t.Context(), 3*time.Second)
		fetched := client.PollFetches(ctx).Records()
		cancel()
		if len(fetched) == 0 {
			return all
		}
		all = append(all, fetched...)
	}
}

// eventTypes are the types of the records of a topic, in the order of one key.
func eventTypes(records []*kgo.Record, topic, key string) (types []string) {
	for _, r := range records {
		if r.Topic == topic && string(r.Key) == key {
			i := slices.IndexFunc(r.Headers, func(h kgo.RecordHeader) bool { return h.Key == "ce_type" })
			types = append(types, string(r.Headers[i].Value))
		}
	}
	return types
}

// database opens a service's database while the service runs.
func (w *virtualSystem) database(service string) *sqldb.DB {
	w.t.Helper()
	db, err := sqldb.Open(w.t.Context(), "sqlite:"+filepath.Join(w.cfg.DataDir, service+".db"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := db.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return db
}

func (w *virtualSystem) exec(db *sqldb.DB, query string, args ...any) {
	w.t.Helper()
	if _, err := db.ExecContext(w.t.Context(), query, args...); err != nil {
		w.t.Fatal(err)
	}
}

// logHistory logs the history of each order of a failed test. It reads files, because the system may have stopped.
func (w *virtualSystem) logHistory() {
	if !w.t.Failed() {
		return
	}
	w.t.Logf("warnings and errors:\n%s", w.log)
	for _, file := range []string{"payments.jsonl", "mail.jsonl", "sms.jsonl"} {
		content, err := os.ReadFile(filepath.Join(w.cfg.DataDir, "sandbox", file))
		w.t.Logf("%s, %v:\n%.20000s", file, err, content)
	}
	for _, id := range w.orders {
		for service, query := range map[string]string{
			"order":        `SELECT version || ' ' || status || ' ' || at FROM order_history WHERE order_id = $1 ORDER BY version`,
			"payment":      `SELECT status || ' ' || COALESCE(error_code, '') || ' attempts ' || attempts FROM payments WHERE order_id = $1`,
			"notification": `SELECT d.channel || ' ' || d.status || ' attempts ' || d.attempts FROM notification_deliveries d JOIN notifications n ON n.id = d.notification_id WHERE n.order_id = $1`,
		} {
			w.t.Logf("order %s, %s: %v", id, service, w.lines(service, query, id))
		}
	}
	for _, service := range []string{"order", "payment", "notification"} {
		w.t.Logf("%s, parked: %v", service, w.lines(service, `SELECT event_type || ' ' || state || ' ' || attempts || ' ' || error FROM parked_records WHERE $1 <> ''`, "x"))
		w.t.Logf("%s, outbox: %v", service, w.lines(service, `SELECT seq || ' ' || event_type || ' of ' || aggregate_id || ' ' || COALESCE(published_at, 'NOT PUBLISHED') FROM outbox WHERE $1 <> ''`, "x"))
	}
}

func (w *virtualSystem) lines(service, query string, arg string) (out []string) {
	db, err := sqldb.Open(context.Background(), "sqlite:"+filepath.Join(w.cfg.DataDir, service+".db"))
	if err != nil {
		return []string{err.Error()}
	}
	defer db.Close()
	rows, err := db.Read().QueryContext(context.Background(), query, arg)
	if err != nil {
		return []string{err.Error()}
	}
	defer rows.Close()
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return append(out, err.Error())
		}
		out = append(out, s)
	}
	return out
}

// A safeBuffer is safe for concurrent use.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write appends.
func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

// String is all that was written.
func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
