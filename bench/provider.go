package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	slowProvider  = 200 * time.Millisecond // how long it takes to answer
	chargesAtOnce = 64                     // of one payment process, as payment.Config says
)

// providerPart lets one and then three payment processes work off a backlog of
// orders, with a provider that takes its time.
func providerPart(ctx context.Context, b *bench) error {
	if err := b.buildPizza(ctx); err != nil {
		return err
	}
	rows := [][]string{{"payment processes", "orders", "paid orders/s", "the provider's limit", "ratio"}}
	var first float64
	for _, processes := range []int{1, 3} {
		limit := float64(processes*chargesAtOnce) / slowProvider.Seconds()
		n := int(limit * b.size.flow.Seconds())
		got, err := b.payBacklog(ctx, processes, n)
		if err != nil {
			return fmt.Errorf("%d payment processes: %w", processes, err)
		}
		if processes == 1 {
			first = got
		}
		b.say("  %d payment processes: %s orders/s of %s", processes, group(got), group(limit))
		rows = append(rows, []string{fmt.Sprint(processes), group(float64(n)), group(got), group(limit), times(got / first)})
	}
	b.report.table(rows...)
	b.report.note("On PostgreSQL and Kafka, with a provider that takes %s for each charge. The orders were placed before the payment processes were started; "+
		"the rate is that of OrderPaid on the topic between the first tenth and the last. A process has at most %d charges under way, hence the limit.",
		slowProvider, chargesAtOnce)
	return nil
}

// payBacklog places n orders, has them paid by so many processes, and returns
// how many a second were.
func (b *bench) payBacklog(ctx context.Context, processes, n int) (perSecond float64, err error) {
	url, err := b.createDatabase(ctx, "provider", "")
	if err != nil {
		return 0, err
	}
	env := []string{"DATABASE_URL=" + url, "KAFKA_BROKERS=" + strings.Join(b.brokers, ",")}
	shop, err := b.deploy(ctx, "PostgreSQL → Kafka", append(env, "SERVICES=order,sandbox", "RATE_LIMIT=0"), "HTTP_ADDR", "ADMIN_ADDR", "SANDBOX_ADDR")
	if err != nil {
		return 0, err
	}
	all := []*deployment{shop}
	defer func() {
		for _, d := range slices.Backward(all) {
			_, e := d.child.stop()
			err = errors.Join(err, e)
		}
	}()
	if shop.bodies, err = requests(ctx, shop.shop); err != nil {
		return 0, err
	}
	payments, err := watchPayments(ctx, b.brokers)
	if err != nil {
		return 0, err
	}
	defer payments.close()
	if err := shop.placeAll(ctx, n); err != nil {
		return 0, err
	}
	behaviour := fmt.Appendf(nil, `{"latency_ms":%d}`, slowProvider.Milliseconds())
	status, text, err := web("http://"+shop.addresses["SANDBOX_ADDR"], 1)(ctx, http.MethodPut, "/payments/behaviour", behaviour)
	if err != nil || status != http.StatusOK {
		return 0, errors.Join(fmt.Errorf("slow the provider down: answer %d: %.200s", status, text), err)
	}
	for range processes {
		d, err := b.deploy(ctx, "payment", append(env, "SERVICES=payment", "PAYMENT_PROVIDER_URL=sandbox://"+shop.addresses["SANDBOX_ADDR"]), "ADMIN_ADDR")
		if err != nil {
			return 0, err
		}
		all = append(all, d)
	}
	var at []time.Time
	for _, t := range payments.all(ctx, n, b.size.catchUp+time.Duration(n)*slowProvider/chargesAtOnce) {
		at = append(at, t)
	}
	if len(at) < n {
		return 0, fmt.Errorf("of %d orders %d were paid", n, len(at))
	}
	slices.SortFunc(at, time.Time.Compare)
	from, to := n/10, n-1-n/10
	return float64(to-from) / at[to].Sub(at[from]).Seconds(), nil
}

// placeAll places n orders, 32 at a time.
func (d *deployment) placeAll(ctx context.Context, n int) error {
	const clients = 32
	errs := make([]error, clients)
	var all sync.WaitGroup
	for c := range clients {
		all.Go(func() {
			for i := c; i < n && errs[c] == nil; i += clients {
				errs[c] = d.place(ctx, i, time.Now()).err
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}
