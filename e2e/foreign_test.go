package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// testForeignWriter writes and reads our topics with kcat, a program that is not
// ours: an order with a header and fields of a later version, and an order that no
// service can handle.
func testForeignWriter(t *testing.T, s setup) {
	kcat := program(t, "kcat")
	d := deploy(t, s)
	id, bad := newID(t), newID(t)
	valid := envelopeOf(t, "OrderCreated", id, map[string]any{
		"order_id": id, "order_number": "BY-HAND1", "customer_name": "Анна", "customer_email": "byhand@example.com", "customer_phone": "+79005556688",
		"total_amount": json.RawMessage("500.00"), "currency": "RUB", "delivery_address": "Невский пр., д. 1", "locale": "ru", "created_at": time.Now().UTC(),
		"items":   []any{map[string]any{"pizza_id": margherita, "name": "Маргарита", "size": "medium", "quantity": 1, "price": json.RawMessage("500.00"), "crust": "thin"}},
		"loyalty": map[string]any{"points": 50},
	})
	invalid := envelopeOf(t, "OrderCreated", bad, map[string]any{"order_id": bad, "items": []any{}})
	d.writeWithKcat(t, kcat, id, valid)
	d.writeWithKcat(t, kcat, bad, invalid)

	mails, texts := d.awaitMessages(t, "byhand@example.com", "+79005556688", 2, paidLimit)
	if len(mails) != 2 || len(texts) != 2 || !strings.Contains(mails[0].Text, "BY-HAND1") {
		t.Errorf("%d mails and %d SMS, the first: %q; want two of each, of BY-HAND1", len(mails), len(texts), mails[0].Text)
	}
	if c := d.charges(t, id); len(c) != 1 || c[0].Status != "succeeded" || c[0].Amount != 500_00 {
		t.Errorf("charges %+v, want one of 500.00", c)
	}
	if c := d.charges(t, bad); len(c) != 0 {
		t.Errorf("the invalid event was charged: %+v", c)
	}
	paid := readWithKcat(t, d, kcat, "payment-events")
	if !strings.Contains(paid, `"event_type":"PaymentCompleted"`) || !strings.Contains(paid, id) {
		t.Errorf("kcat reads no PaymentCompleted of the order: %s", paid)
	}
	d.checkForeignDeadLetters(t, kcat, bad, invalid)
}

// checkForeignDeadLetters reads with kcat that both groups wrote a dead letter of the
// invalid event, with its key and header, and no other.
func (d *deployment) checkForeignDeadLetters(t *testing.T, kcat, key string, invalid []byte) {
	t.Helper()
	var lines []string
	eventually(t, paidLimit, func() string {
		out := d.kcat(t, kcat, nil, "-t", "order-events-dlq", "-C", "-e", "-q", "-f", `%k %h %s\n`)
		if lines = strings.Split(strings.TrimSpace(out), "\n"); len(lines) < 2 {
			return fmt.Sprintf("%d dead letters, want one of each group", len(lines))
		}
		return ""
	})
	groups := map[string]bool{}
	for _, line := range lines {
		at, value, _ := strings.Cut(line, " ")
		headers, value, _ := strings.Cut(value, " ")
		var l deadLetter
		if err := json.Unmarshal([]byte(value), &l); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		groups[l.ConsumerGroup] = true
		if at != key || !strings.Contains(headers, "x-colour=green") || string(l.OriginalMessage) != string(invalid) || l.ErrorReason == "" {
			t.Errorf("dead letter %s", line)
		}
	}
	if len(lines) != 2 || !groups["payment-service"] || !groups["notification-service"] {
		t.Errorf("%d dead letters of %v", len(lines), groups)
	}
}

// writeWithKcat writes a record with an unknown header to order-events.
func (d *deployment) writeWithKcat(t *testing.T, kcat, key string, value []byte) {
	t.Helper()
	d.kcat(t, kcat, value, "-t", "order-events", "-P", "-k", key, "-H", "x-colour=green")
}

// kcat runs kcat with an input and returns its output.
func (d *deployment) kcat(t *testing.T, kcat string, input []byte, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, kcat, append([]string{"-b", strings.Join(d.broker(), ",")}, args...)...)
	cmd.Stdin = bytes.NewReader(input)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, stderr.String())
	}
	return string(out)
}
