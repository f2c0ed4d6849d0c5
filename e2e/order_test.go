package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// paidLimit is how long an order may take to be paid while everything works: on an
// idle machine it takes a tenth of a second.
const paidLimit = 45 * time.Second

// testOrder places one order, which is paid, and looks at its messages, the topics,
// the databases, the logs and the metrics.
func testOrder(t *testing.T, s setup) {
	kcat := program(t, "kcat")
	d := deploy(t, s)
	customer := orderRequest{
		CustomerName: "Иван Канарейкин", CustomerEmail: "canary.bird@example.com", CustomerPhone: "+7-903-111-22-33",
		Items: []line{{PizzaID: firstPizza(t, d), Quantity: 2, Size: "large"}}, DeliveryAddress: "ул. Чёрный пруд, д. 10",
	}
	placed := d.place(t, customer)
	if string(placed.TotalAmount) != "1200.00" || placed.Currency != "RUB" || placed.Status != "pending" || placed.OrderNumber == "" {
		t.Errorf("201 with %+v, want 1200.00 RUB, pending", placed)
	}
	paid := d.await(t, placed.OrderID, "paid", paidLimit)
	if paid.PaidAt == nil || paid.Version != 2 || len(paid.History) != 2 || paid.History[0].Status != "pending" || paid.History[1].Status != "paid" {
		t.Errorf("paid order: %+v", paid)
	} else {
		t.Logf("paid %s after it was placed", paid.PaidAt.Sub(paid.CreatedAt))
	}

	mails, texts := d.awaitMessages(t, customer.CustomerEmail, "+79031112233", 2, paidLimit)
	checkMessages(t, placed, mails, texts)
	counts := d.awaitPublished(t, paidLimit)
	if want := map[string]int{"order": 2, "payment": 1, "notification": 0}; !maps.Equal(counts, want) {
		t.Errorf("events in the databases: %v, want %v", counts, want)
	}
	if c := d.charges(t, placed.OrderID); len(c) != 1 || c[0].Status != "succeeded" || c[0].Amount != 1200_00 || c[0].Currency != "RUB" {
		t.Errorf("charges: %+v, want one of 1200.00 RUB", c)
	}
	ids := checkTopics(t, d, kcat, placed.OrderID)
	checkTracker(t, d, placed.OrderID)
	if len(s.processes) == 0 {
		checkMetrics(t, d)
	}
	checkLogs(t, d, ids)
}

func firstPizza(t *testing.T, d *deployment) string {
	t.Helper()
	status, body, err := fetch(t.Context(), d.shop("/api/v1/menu"))
	if err != nil || status != http.StatusOK {
		t.Fatalf("menu: %d %s %v", status, body, err)
	}
	var menu struct {
		Pizzas []struct {
			ID     string `json:"id"`
			Prices struct {
				Large json.RawMessage `json:"large"`
			} `json:"prices"`
		} `json:"pizzas"`
	}
	if err := json.Unmarshal(body, &menu); err != nil {
		t.Fatal(err)
	}
	if len(menu.Pizzas) < 12 || menu.Pizzas[0].ID != margherita || string(menu.Pizzas[0].Prices.Large) != "600.00" {
		t.Errorf("menu: %d pizzas, the first %+v; want twelve or more, the first for 600.00", len(menu.Pizzas), menu.Pizzas[0])
	}
	return menu.Pizzas[0].ID
}

func checkMessages(t *testing.T, o order, mails []mail, texts []sms) {
	t.Helper()
	if len(mails) != 2 || len(texts) != 2 {
		t.Fatalf("%d mails and %d SMS, want two of each", len(mails), len(texts))
	}
	if mails[0].MessageID == mails[1].MessageID || texts[0].Reference == texts[1].Reference {
		t.Errorf("two messages have one id: %q, %q", mails[0].MessageID, texts[0].Reference)
	}
	confirmed := 0
	for _, m := range mails {
		if !strings.Contains(m.Subject+m.Text, o.OrderNumber) || !strings.Contains(m.HTML, o.OrderNumber) {
			t.Errorf("a mail without the order's number %s: %s\n%s", o.OrderNumber, m.Subject, m.Text)
		}
		if strings.Contains(m.Text, "Маргарита") && strings.Contains(m.Text, "Чёрный пруд") {
			confirmed++
		}
	}
	if confirmed == 0 {
		t.Errorf("no mail says what was ordered and where it goes: %q, %q", mails[0].Text, mails[1].Text)
	}
	for _, s := range texts {
		if !strings.Contains(s.Text, o.OrderNumber) {
			t.Errorf("an SMS without the order's number %s: %q", o.OrderNumber, s.Text)
		}
	}
}

// checkTopics reads the topics with kcat, and returns the type of each event by its
// id.
func checkTopics(t *testing.T, d *deployment, kcat, orderID string) map[string]string {
	t.Helper()
	paymentID := d.value(t, "payment", `SELECT id FROM payments WHERE order_id = $1`, orderID)
	ids := map[string]string{}
	for _, want := range []struct {
		topic, key, aggregate string
		types                 []string
	}{
		{"order-events", orderID, "order_id", []string{"OrderCreated", "OrderPaid"}},
		{"payment-events", paymentID, "payment_id", []string{"PaymentCompleted"}},
		{"order-events-dlq", "", "", nil},
		{"payment-events-dlq", "", "", nil},
	} {
		var types []string
		for line := range strings.Lines(readWithKcat(t, d, kcat, want.topic)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			e := checkEnvelope(t, []byte(value))
			if key != want.key || e.AggregateID != want.key {
				t.Errorf("%s is keyed by %s, its aggregate is %s, want %s", e.EventType, key, e.AggregateID, want.key)
			}
			if data := fmt.Sprintf("%q:%q", want.aggregate, want.key); !strings.Contains(string(e.EventData), data) {
				t.Errorf("%s has no %s: %s", e.EventType, data, e.EventData)
			}
			types = append(types, e.EventType)
			ids[e.EventID] = e.EventType
		}
		if !slices.Equal(types, want.types) {
			t.Errorf("%s holds %v, want %v", want.topic, types, want.types)
		}
	}
	for _, r := range d.records(t, "order-events") {
		for _, h := range []string{"ce_specversion", "ce_id", "ce_type", "ce_source", "ce_subject", "ce_time", "content-type", "schema_version", "aggregate_version"} {
			if headerOf(r, h) == "" {
				t.Errorf("%s has no header %s: %s", headerOf(r, "ce_type"), h, headersText(r))
			}
		}
	}
	return ids
}

func readWithKcat(t *testing.T, d *deployment, kcat, topic string) string {
	t.Helper()
	return d.kcat(t, kcat, nil, "-t", topic, "-C", "-e", "-q", "-f", `%k %s\n`)
}

type envelope struct {
	EventID     string          `json:"event_id"`
	EventType   string          `json:"event_type"`
	AggregateID string          `json:"aggregate_id"`
	EventData   json.RawMessage `json:"event_data"`
	Timestamp   time.Time       `json:"timestamp"`
}

// checkEnvelope decodes an envelope, which must have the five fields in their
// order and nothing else.
func checkEnvelope(t *testing.T, value []byte) envelope {
	t.Helper()
	var e envelope
	if err := json.Unmarshal(value, &e); err != nil {
		t.Fatalf("%v: %s", err, value)
	}
	var fields []string
	dec, depth := json.NewDecoder(bytes.NewReader(value)), 0
	for expectName := false; ; {
		token, err := dec.Token()
		if err != nil {
			break
		}
		name, isText := token.(string)
		switch {
		case token == json.Delim('{') || token == json.Delim('['):
			depth++
			expectName = depth == 1
		case token == json.Delim('}') || token == json.Delim(']'):
			depth--
			expectName = depth == 1
		case depth == 1 && expectName && isText:
			fields, expectName = append(fields, name), false
		case depth == 1:
			expectName = true
		}
	}
	if want := []string{"event_id", "event_type", "aggregate_id", "event_data", "timestamp"}; !slices.Equal(fields, want) {
		t.Errorf("the envelope has the fields %v, want %v", fields, want)
	}
	if _, offset := e.Timestamp.Zone(); offset != 0 || e.Timestamp.IsZero() || len(e.EventID) != 36 || e.EventID[14] != '7' {
		t.Errorf("the envelope has no UTC timestamp or no UUIDv7: %s", value)
	}
	return e
}

// checkTracker reads the order's event stream as a browser's tracker does.
func checkTracker(t *testing.T, d *deployment, orderID string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.shop("/api/v1/orders/"+orderID+"/events"), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || !strings.HasPrefix(kind, "text/event-stream") {
		t.Fatalf("event stream: %d %s", resp.StatusCode, kind)
	}
	var statuses, ids []string
	for lines := bufio.NewScanner(resp.Body); len(statuses) < 2 && lines.Scan(); {
		if id, ok := strings.CutPrefix(lines.Text(), "id:"); ok {
			ids = append(ids, strings.TrimSpace(id))
		}
		if data, ok := strings.CutPrefix(lines.Text(), "data:"); ok {
			var step struct {
				OrderID string `json:"order_id"`
				Status  string `json:"status"`
			}
			if err := json.Unmarshal([]byte(data), &step); err != nil || step.OrderID != orderID {
				t.Errorf("event stream: %q %v", data, err)
			}
			statuses = append(statuses, step.Status)
		}
	}
	if !slices.Equal(statuses, []string{"pending", "paid"}) || !slices.Equal(ids, []string{"1", "2"}) {
		t.Errorf("the event stream tells %v with ids %v, want pending and paid, 1 and 2", statuses, ids)
	}
}
