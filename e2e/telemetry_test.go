package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// canaries are the personal data of the customer of testOrder, which must not
// get into logs.
var canaries = []string{"Канарейкин", "canary.bird@example.com", "79031112233", "903-111-22-33", "Чёрный пруд"}

// checkLogs looks for the two lines of each event, and for personal data, which must
// not be in the log.
func checkLogs(t *testing.T, d *deployment, ids map[string]string) {
	t.Helper()
	published, processed := map[string]int{}, map[string]int{}
	for _, services := range d.setup.processes {
		file := d.process(services).log
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, canary := range canaries {
			if at := bytes.Index(raw, []byte(canary)); at >= 0 {
				t.Errorf("the log holds %q: …%s…", canary, raw[max(0, at-200):min(len(raw), at+100)])
			}
		}
		for _, line := range logLines(t, file) {
			id, _ := line["event_id"].(string)
			switch line["msg"] {
			case "Event published":
				requireFields(t, line, ids[id], "event_id", "event_type", "aggregate_id", "topic", "timestamp")
				published[id]++
			case "Event processed":
				requireFields(t, line, ids[id], "event_id", "event_type", "processing_time_ms", "consumer_group", "timestamp")
				processed[id]++
			}
		}
	}
	handlers := map[string]int{"OrderCreated": 2, "OrderPaid": 0, "PaymentCompleted": 2}
	for id, kind := range ids {
		if published[id] != 1 || processed[id] != handlers[kind] {
			t.Errorf("%s was logged as published %d times and as processed %d times, want once and %d times", kind, published[id], processed[id], handlers[kind])
		}
	}
}

func requireFields(t *testing.T, line map[string]any, eventType string, names ...string) {
	t.Helper()
	for _, name := range names {
		if v, ok := line[name]; !ok || v == "" {
			t.Errorf("%v has no %s: %v", line["msg"], name, line)
		}
	}
	if line["event_type"] != eventType {
		t.Errorf("%v of a %v that is a %q on the topic", line["msg"], line["event_type"], eventType)
	}
}

// checkMetrics checks the metrics of the process after one order.
func checkMetrics(t *testing.T, d *deployment) {
	t.Helper()
	var metrics map[string]float64
	sum := func(name string, labels ...string) (sum float64, series int) {
		for key, value := range metrics {
			n, rest, _ := strings.Cut(key, "{")
			if n == name && !slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(rest, l) }) {
				sum, series = sum+value, series+1
			}
		}
		return sum, series
	}
	wanted := []struct {
		name   string
		labels []string
		value  float64
	}{
		{"pizza_outbox_unpublished", []string{`service="order"`}, 0},
		{"pizza_outbox_unpublished", []string{`service="payment"`}, 0},
		{"pizza_outbox_unpublished", []string{`service="notification"`}, 0},
		{"pizza_outbox_oldest_seconds", []string{`service="order"`}, 0},
		{"pizza_outbox_publish_delay_seconds_count", nil, 3},
		{"pizza_outbox_published_total", []string{`service="order"`}, 2},
		{"pizza_outbox_published_total", []string{`service="payment"`}, 1},
		{"pizza_consumer_processed_total", []string{`event_type="OrderCreated"`, `result="handled"`}, 2},
		{"pizza_consumer_processed_total", []string{`event_type="PaymentCompleted"`, `result="handled"`}, 2},
		{"pizza_consumer_processing_seconds_count", nil, 4},
		{"pizza_dead_letters", []string{`group="order-service"`}, 0},
		{"pizza_dead_letters", []string{`group="payment-service"`}, 0},
		{"pizza_dead_letters", []string{`group="notification-service"`}, 0},
		{"pizza_order_end_to_end_seconds_count", nil, 1},
		{"pizza_payments_total", []string{`result="completed"`}, 1},
		{"pizza_notification_delivery_seconds_count", []string{`channel="email"`}, 2},
		{"pizza_notification_delivery_seconds_count", []string{`channel="sms"`}, 2},
		{"pizza_notification_deliveries_total", []string{`channel="email"`, `result="sent"`}, 2},
		{"pizza_notification_deliveries_total", []string{`channel="sms"`, `result="sent"`}, 2},
		{"pizza_payments_unanswered", []string{`status="unknown"`}, 0},
		{"pizza_notification_deliveries_waiting", []string{`channel="sms"`}, 0},
		{"pizza_notification_deliveries_unknown", []string{`channel="email"`}, 0},
		{"pizza_notification_deliveries_oldest_seconds", []string{`channel="email"`}, 0},
		{"pizza_orders_attention", []string{`reason="payment_overdue"`}, 0},
	}
	eventually(t, paidLimit, func() string { // metrics that are counted in the background are there from the second scrape on
		metrics = scrape(t, d)
		for _, want := range wanted {
			if value, series := sum(want.name, want.labels...); series == 0 || value != want.value {
				return fmt.Sprintf("%s%v is %v in %d series, want %v", want.name, want.labels, value, series, want.value)
			}
		}
		return ""
	})
	if _, series := sum("pizza_outbox_publish_errors_total"); series == 0 {
		t.Error("no pizza_outbox_publish_errors_total")
	}
	for group, topics := range map[string][]string{
		"order-service": {"payment-events"}, "payment-service": {"order-events"}, "notification-service": {"order-events", "payment-events"},
	} {
		for _, topic := range topics {
			eventually(t, paidLimit, func() string { // the lag is that of the last fetch
				metrics = scrape(t, d)
				if lag, series := sum("pizza_consumer_lag", `group="`+group+`"`, `topic="`+topic+`"`); lag != 0 || series == 0 {
					return fmt.Sprintf("pizza_consumer_lag of %s on %s is %v in %d series, want 0", group, topic, lag, series)
				}
				return ""
			})
		}
	}
	if status, body, err := fetch(t.Context(), "http://"+d.address("ADMIN_ADDR")+"/livez"); err != nil || status != http.StatusOK {
		t.Errorf("/livez: %d %s %v", status, body, err)
	}
}

// scrape reads /metrics: the value of each series by its name with labels.
func scrape(t *testing.T, d *deployment) map[string]float64 {
	t.Helper()
	status, body, err := fetch(t.Context(), "http://"+d.address("ADMIN_ADDR")+"/metrics")
	if err != nil || status != http.StatusOK {
		t.Fatalf("/metrics: %d %v", status, err)
	}
	series := map[string]float64{}
	for line := range strings.Lines(string(body)) {
		if at := strings.LastIndexByte(line, ' '); at > 0 && line[0] != '#' {
			value, err := strconv.ParseFloat(strings.TrimSpace(line[at:]), 64)
			if err != nil {
				t.Fatalf("/metrics: %q", line)
			}
			series[line[:at]] = value
		}
	}
	return series
}
