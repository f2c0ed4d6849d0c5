package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// testRefused has the broker refuse a topic, and a record: all other events are
// published, and the refusal can be seen and repaired.
func testRefused(t *testing.T, s setup) {
	d := deploy(t, s)
	first := d.place(t, customer(0, ""))
	d.await(t, first.OrderID, "paid", paidLimit) // so that all services have started working
	t.Run("a topic that may not be written to", d.testNoRights)
	t.Run("a record above the limit", d.testOversized)
	d.awaitSettled(t, len(d.rows(t, "order", `SELECT id FROM orders`)))
}

// testNoRights takes the right to write to payment-events away for a while.
func (d *deployment) testNoRights(t *testing.T) {
	admin := d.admin(t)
	// Once a topic has a rule, an operation without a rule is forbidden; and a rule that denies outweighs all others.
	all := kadm.NewACLs().Topics("payment-events").Operations(kadm.OpAll).Allow("User:*").AllowHosts("*").ResourcePatternType(kadm.ACLPatternLiteral)
	deny := kadm.NewACLs().Topics("payment-events").Operations(kadm.OpWrite).Deny("User:*").DenyHosts("*").ResourcePatternType(kadm.ACLPatternLiteral)
	for _, acl := range []*kadm.ACLBuilder{all, deny} {
		created, err := admin.CreateACLs(t.Context(), acl)
		if err == nil && len(created) > 0 {
			err = created[0].Err
		}
		if errors.Is(err, kerr.SecurityDisabled) {
			missing(t, "authorizer", "KAFKA_BROKERS has none; e2e/servers starts one with it")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	forgive := func() error {
		ctx := context.WithoutCancel(t.Context())
		_, err := admin.DeleteACLs(ctx, deny)
		if err == nil {
			_, err = admin.DeleteACLs(ctx, all)
		}
		return err
	}
	t.Cleanup(func() { // other tests use the topic
		if err := forgive(); err != nil {
			t.Error(err)
		}
	})
	before := sumOf(scrape(t, d), "pizza_outbox_publish_errors_total")

	// The order is confirmed and charged; only the event about the charge waits.
	stuck := d.place(t, customer(1, ""))
	d.awaitMessages(t, customer(1, "").CustomerEmail, guestPhone(1), 1, paidLimit)
	eventually(t, paidLimit, func() string {
		if n := succeeded(d.charges(t, stuck.OrderID)); n != 1 {
			return fmt.Sprintf("%d charges", n)
		}
		metrics := scrape(t, d)
		if n := sumOf(metrics, "pizza_outbox_unpublished", `service="payment"`); n != 1 {
			return fmt.Sprintf("pizza_outbox_unpublished of payment is %v, want 1", n)
		}
		if n := sumOf(metrics, "pizza_outbox_refused", `service="payment"`, `lane="payment-events"`); n != 1 {
			return fmt.Sprintf("pizza_outbox_refused of payment-events is %v, want 1", n)
		}
		if n := sumOf(metrics, "pizza_outbox_unpublished", `service="order"`); n != 0 {
			return fmt.Sprintf("pizza_outbox_unpublished of order is %v, want 0", n)
		}
		if sumOf(metrics, "pizza_outbox_publish_errors_total") <= before {
			return "no publish error is counted"
		}
		return ""
	})
	if o, err := d.getOrder(t.Context(), stuck.OrderID); err != nil || o.Status != "pending" {
		t.Errorf("without the event about its payment the order is %q: %v", o.Status, err)
	}
	if !d.logged(t, "partition paused", "payment-events") {
		t.Error("the refusal is not in the log")
	}
	if err := forgive(); err != nil {
		t.Fatal(err)
	}
	d.checkServed(t, stuck, 1)
}

// smallLimit has room for an order of one line, and not for one of many.
const smallLimit = 1500

// testOversized lowers the limit of order-events below one large order.
func (d *deployment) testOversized(t *testing.T) {
	admin := d.admin(t)
	limit := func(bytes int) {
		value := strconv.Itoa(bytes)
		altered, err := admin.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &value}}, "order-events")
		if err == nil && len(altered) > 0 {
			err = altered[0].Err
		}
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, paidLimit, func() string { // until the broker has it from its controller
			described, err := admin.DescribeTopicConfigs(t.Context(), "order-events")
			if err != nil {
				return err.Error()
			}
			for _, c := range described[0].Configs {
				if c.Key == "max.message.bytes" && c.MaybeValue() == value {
					return ""
				}
			}
			return "max.message.bytes is not " + value
		})
	}
	limit(smallLimit)
	large := customer(2, "")
	large.Items = nil
	for _, p := range d.menu(t) {
		for _, size := range []string{"small", "medium", "large"} {
			large.Items = append(large.Items, line{PizzaID: p, Quantity: 1, Size: size})
		}
	}
	blocked := d.place(t, large)
	eventually(t, paidLimit, func() string {
		if n := sumOf(scrape(t, d), "pizza_outbox_blocked", `service="order"`); n != 1 {
			return fmt.Sprintf("pizza_outbox_blocked of order is %v, want 1", n)
		}
		return ""
	})
	other := d.place(t, customer(3, ""))
	d.checkServed(t, other, 3)
	if o, err := d.getOrder(t.Context(), blocked.OrderID); err != nil || o.Status != "pending" {
		t.Errorf("the order that is blocked is %q: %v", o.Status, err)
	}
	if !d.logged(t, "event blocked", blocked.OrderID) {
		t.Error("the refusal is not in the log")
	}
	d.retryBlocked(t, blocked, limit)
	d.checkServed(t, blocked, 2)
}

// retryBlocked does what an operator does about an order whose events are blocked.
func (d *deployment) retryBlocked(t *testing.T, o order, limit func(bytes int)) {
	t.Helper()
	var status []struct {
		Service string
		Leader  string
		Blocked int
	}
	if err := json.Unmarshal(d.command(t, "outbox", "status", "-o", "json", "--service", "order"), &status); err != nil {
		t.Fatal(err)
	}
	if len(status) != 1 || status[0].Leader != "alive" || status[0].Blocked != 1 {
		t.Errorf("pizza outbox status: %+v", status)
	}
	if listed := d.command(t, "outbox", "blocked"); !strings.Contains(string(listed), o.OrderID) || !strings.Contains(string(listed), "MESSAGE_TOO_LARGE") {
		t.Errorf("pizza outbox blocked: %s", listed)
	}
	limit(1<<20 + 12)
	d.command(t, "outbox", "retry", "--service", "order", "--key", o.OrderID, "--why", "the limit was too low")
	if listed := d.command(t, "outbox", "blocked", "-o", "json"); strings.TrimSpace(string(listed)) != "[]" {
		t.Errorf("after the retry pizza outbox blocked says %s", listed)
	}
}

// command runs pizza with arguments, beside the processes of the deployment, and
// returns its output.
func (d *deployment) command(t *testing.T, args ...string) []byte {
	t.Helper()
	return d.commandAs(t, d.setup.processes[0], args...)
}

// commandLimit is how long a command may take: pizza verify waits for up to ten
// minutes.
const commandLimit = 15 * time.Minute

// commandAs is command with the environment of the process of that name.
func (d *deployment) commandAs(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, pizza, args...)
	cmd.Env, cmd.Dir = d.environment(name), filepath.Dir(d.dir)
	if len(d.setup.processes) == 1 { // which chose its own ports
		cmd.Env = append(cmd.Env, "SANDBOX_ADDR="+d.address("SANDBOX_ADDR"), "KAFKA_LISTEN="+d.address("KAFKA_LISTEN"))
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("pizza %s: %v\n%s", strings.Join(args, " "), err, &said)
	}
	return out
}

// menu is the ids of the pizzas.
func (d *deployment) menu(t *testing.T) (ids []string) {
	t.Helper()
	_, body, err := fetch(t.Context(), d.shop("/api/v1/menu"))
	if err != nil {
		t.Fatal(err)
	}
	var menu struct{ Pizzas []struct{ ID string } }
	if err := json.Unmarshal(body, &menu); err != nil {
		t.Fatal(err)
	}
	for _, p := range menu.Pizzas {
		ids = append(ids, p.ID)
	}
	return ids
}

// logged reports whether a process has written a line with the message and the
// text somewhere in it.
func (d *deployment) logged(t *testing.T, message, text string) bool {
	t.Helper()
	for _, services := range d.setup.processes {
		for _, line := range logLines(t, d.process(services).log) {
			if line["msg"] == message && strings.Contains(fmt.Sprint(line), text) {
				return true
			}
		}
	}
	return false
}

// sumOf adds up the series of a name that have the labels.
func sumOf(metrics map[string]float64, name string, labels ...string) (sum float64) {
next:
	for key, value := range metrics {
		n, rest, _ := strings.Cut(key, "{")
		if n != name {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(rest, l) {
				continue next
			}
		}
		sum += value
	}
	return sum
}
