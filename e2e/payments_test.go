package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// An ending is the outcome that the order of a certain customer must have.
type ending struct {
	tag     string
	status  string
	reason  string
	charges int           // that succeeded
	within  time.Duration // paidLimit when zero
}

var endings = []ending{
	{tag: "declined", status: "payment_failed", reason: "card_declined"},
	{tag: "insufficient_funds", status: "payment_failed", reason: "insufficient_funds"},
	{tag: "error", status: "paid", charges: 1},
	{tag: "lost", status: "paid", charges: 1},
	{tag: "timeout", status: "paid", charges: 1},
	{tag: "hang", status: "paid", charges: 1},
	{tag: "slow", status: "paid", charges: 1},
	{tag: "late", status: "paid", charges: 1, within: 2 * time.Minute},
}

// testPayments has the provider do everything that it can do with a charge. With the
// shared Kafka, where tests run one after the other, the slowest is left to testKill.
func testPayments(t *testing.T, s setup) {
	d := deploy(t, s.with("PAYMENT_PROVIDER_TIMEOUT=1s"))
	endings := endings
	if s.realKafka {
		endings = slices.DeleteFunc(slices.Clone(endings), func(e ending) bool { return e.tag == "late" })
	}
	orders := make([]order, len(endings))
	for i, e := range endings {
		customer := ivan("guest+" + e.tag + "@example.com")
		customer.CustomerPhone = guestPhone(i)
		orders[i] = d.place(t, customer)
	}
	for i, e := range endings {
		t.Run(e.tag, func(t *testing.T) {
			o := d.await(t, orders[i].OrderID, e.status, max(e.within, paidLimit))
			t.Logf("%s %s after it was placed", o.Status, o.decided().Sub(o.CreatedAt))
			if e.reason != "" && (o.FailureReason == nil || *o.FailureReason != e.reason) {
				t.Errorf("failure reason %v, want %s", o.FailureReason, e.reason)
			}
			charges := d.charges(t, o.OrderID)
			if succeeded(charges) != e.charges {
				t.Errorf("%d charges succeeded, want %d: %+v", succeeded(charges), e.charges, charges)
			}
			for _, c := range charges {
				if c.IdempotencyKey != charges[0].IdempotencyKey || c.Amount != 1200_00 {
					t.Errorf("charges under different keys or of another amount: %+v", charges)
				}
			}
			mails, texts := d.awaitMessages(t, "guest+"+e.tag+"@example.com", guestPhone(i), 2, paidLimit)
			checkOutcomeTold(t, o, mails, texts)
		})
	}
	if t.Failed() {
		for _, o := range orders {
			d.printOnFailure(o.OrderID)
		}
	}
}

// guestPhone is the phone number of guest number i.
func guestPhone(i int) string { return fmt.Sprintf("+7900%07d", 1000000+i) }

// decided is when the order got its status.
func (o order) decided() time.Time {
	if len(o.History) == 0 {
		return time.Time{}
	}
	return o.History[len(o.History)-1].At
}

// checkOutcomeTold wants two messages by each channel: the confirmation of the order
// and the outcome of its payment.
func checkOutcomeTold(t *testing.T, o order, mails []mail, texts []sms) {
	t.Helper()
	if len(mails) != 2 || len(texts) != 2 {
		t.Errorf("%d mails and %d SMS, want two of each", len(mails), len(texts))
	}
	words := map[string]string{"paid": o.OrderNumber + " оплачен", "payment_failed": "не прошла"}[o.Status]
	told := func(s string) bool { return strings.Contains(s, words) }
	if !slices.ContainsFunc(mails, func(m mail) bool { return told(m.Subject + m.Text) }) {
		t.Errorf("no mail tells that the order is %s: %+v", o.Status, mails)
	}
	if !slices.ContainsFunc(texts, func(s sms) bool { return told(s.Text) }) {
		t.Errorf("no SMS tells that the order is %s: %+v", o.Status, texts)
	}
}
