package main

import (
	"fmt"
	"slices"
	"time"
)

// ratio is the median of the ratios of paired rounds, or of the medians where
// the numbers of rounds differ.
func ratio(ours, theirs []float64) float64 {
	if len(theirs) == 0 || len(ours) == 0 {
		return 0
	}
	if len(ours) != len(theirs) {
		return median(ours) / median(theirs)
	}
	var all []float64
	for i := range ours {
		if theirs[i] > 0 {
			all = append(all, ours[i]/theirs[i])
		}
	}
	return median(all)
}

// ratesOf are the rates of one contender in a place, round by round, and the
// sums of what its rounds used.
func (r *report) ratesOf(where, name string) (rates []float64, last []drain) {
	for _, d := range r.drains {
		if d.where == where && d.name == name {
			rates, last = append(rates, d.perSecond()), append(last, d.drain)
		}
	}
	return rates, last
}

// relayTable shows every contender in every place.
func (b *bench) relayTables() {
	r := b.report
	var done []string
	for _, d := range r.drains {
		if len(done) == 0 || done[len(done)-1] != d.where {
			done = append(done, d.where)
		}
	}
	seen := map[string]bool{}
	for _, where := range done {
		if seen[where] {
			continue
		}
		seen[where] = true
		r.drainTable(where)
	}
	r.note("Rates are from the first record to the last, as the topic's end moved. A backlog that takes longer than %s is left there (the slow ones), ours and "+
		"Debezium's are drained to the end. A consumer then reads everything again: per aggregate nothing came before its predecessor and nothing is missing. "+
		"Processor seconds are the relay's + PostgreSQL's + the broker's, for a million events; memory is the relay's peak.", b.size.box)
	b.reachRelay()
}

func (r *report) drainTable(where string) {
	ours, _ := r.ratesOf(where, "ours")
	rows := [][]string{{where, "rounds", "events/s", "ours is faster by", "processor s a million", "memory"}}
	seen := map[string]bool{}
	for _, d := range r.drains {
		if d.where != where || seen[d.name] {
			continue
		}
		seen[d.name] = true
		rates, all := r.ratesOf(where, d.name)
		var relay, postgres, broker []float64
		var peak int64
		for _, x := range all {
			m := 1e6 / float64(x.records)
			relay, postgres, broker = append(relay, x.took.cpu.Seconds()*m), append(postgres, x.postgres.Seconds()*m), append(broker, x.broker.Seconds()*m)
			peak = max(peak, x.took.peak)
		}
		faster := times(ratio(ours, rates))
		if d.name == "ours" {
			faster = "1"
		}
		rows = append(rows, []string{
			d.name, fmt.Sprint(len(rates)), group(median(rates)), faster,
			fmt.Sprintf("%.1f + %.1f + %.1f", median(relay), median(postgres), median(broker)), mib(peak),
		})
	}
	r.table(rows...)
}

func (b *bench) reachRelay() {
	r := b.report
	const main, embedded = "PostgreSQL → Kafka", "PostgreSQL → embedded"
	if ours, all := r.ratesOf(main, "ours"); len(ours) > 0 {
		against := func(name string) float64 { rates, _ := r.ratesOf(main, name); return ratio(ours, rates) }
		literal, mill, dbz := against("literal: one by one"), against("Watermill forwarder, tuned"), against("Debezium, tuned")
		got := median(ours)
		r.reach("drain real", got >= 90_000 && literal >= 50 && mill >= 15 && (dbz >= 2 || !b.size.peers),
			"%s/s; %s literal; %s Watermill; %s Debezium", group(got), times(literal), times(mill), times(dbz))
		var peak int64
		var cpu []float64
		for _, d := range all {
			peak, cpu = max(peak, d.took.peak), append(cpu, d.cpuPerMillion().Seconds())
		}
		r.reach("relay memory", peak <= 100<<20, "%s", mib(peak))
		r.reach("relay cpu", median(cpu) <= 12, "%.1f s", median(cpu))
	}
	if ours, _ := r.ratesOf(embedded, "ours"); len(ours) > 0 {
		base, _ := r.ratesOf(embedded, "literal: one by one")
		got, literal := median(ours), ratio(ours, base)
		r.reach("drain embedded", got >= 90_000 && literal >= 50, "%s/s; %s literal", group(got), times(literal))
	}
}

func (b *bench) latencyTable() {
	type key struct {
		name, where string
		rate        int
	}
	rows := [][]string{{"", "on", "events/s", "rounds", "p50", "p99", "max", "did not come"}}
	all := map[key][]lags{}
	for _, t := range b.report.times {
		k := key{t.name, t.where, t.rate}
		all[k] = append(all[k], t.lags)
	}
	for _, t := range b.report.times {
		k := key{t.name, t.where, t.rate}
		rounds := all[k]
		if rounds == nil {
			continue // it has its row
		}
		delete(all, k)
		over := func(quantile float64) (v []float64) {
			for _, l := range rounds {
				v = append(v, float64(l.at(quantile)))
			}
			return v
		}
		p50, p99 := median(over(0.5)), median(over(0.99))
		rows = append(rows, []string{t.name, t.where, fmt.Sprint(t.rate), fmt.Sprint(len(rounds)), msOf(p50), msOf(p99), msOf(slices.Max(over(1))), fmt.Sprint(t.missing)})
		if t.name == "ours" && t.where == "PostgreSQL → Kafka" {
			b.report.reach(fmt.Sprintf("latency %d", t.rate), p50 <= 2e6 && p99 <= 15e6, "p50 %s, p99 %s", msOf(p50), msOf(p99))
		}
	}
	b.report.table(rows...)
	b.report.note("From the return of the commit to the receipt by a consumer in another process; the load is open, the first %s are left out, "+
		"and of several rounds the medians are shown. “ours” writes in the relay's process, as the order service does.", warmUp)
}

func (b *bench) intakeTable(engine string, rounds map[string][]intakeResult) {
	rows := [][]string{{engine + ", 32 clients", "rounds", "orders/s", "ratio", "p50", "p99", "processor µs an order: ours + PostgreSQL", "enough for"}}
	rates := func(name string) (v []float64) {
		for _, r := range rounds[name] {
			v = append(v, r.PerSecond)
		}
		return v
	}
	base := rates("one transaction per order")
	for _, name := range []string{"one transaction per order", "ours", "ours, over HTTP"} {
		all := rounds[name]
		if len(all) == 0 {
			continue
		}
		var p50, p99 []float64
		for _, r := range all {
			p50, p99 = append(p50, float64(r.P50)), append(p99, float64(r.P99))
		}
		last := all[len(all)-1]
		spent, limit := last.effort.an(last.Stored)
		rows = append(rows, []string{
			name, fmt.Sprint(len(all)), group(median(rates(name))), times(ratio(rates(name), base)),
			msOf(median(p50)), msOf(median(p99)), spent, group(limit) + "/s",
		})
	}
	b.report.table(rows...)
	ours := rates("ours")
	if len(ours) == 0 {
		return
	}
	got, more := median(ours), ratio(ours, base)
	met := got >= 8000
	if engine == "PostgreSQL" {
		met = got >= 6000 && more >= 4
	}
	b.report.reach("intake "+engine, met, "%s/s; %s one transaction per order; over HTTP %s/s", group(got), times(more), group(median(rates("ours, over HTTP"))))
}

func (b *bench) consumerTable(where string, rounds map[string][]float64) {
	rows := [][]string{{where, "rounds", "records/s", "ratio"}}
	base := rounds[byHand]
	for _, kind := range []string{byHand, byOn, byBatch} {
		if len(rounds[kind]) > 0 {
			rows = append(rows, []string{kind, fmt.Sprint(len(rounds[kind])), group(median(rounds[kind])), times(ratio(rounds[kind], base))})
		}
	}
	b.report.table(rows...)
	if len(rounds[byOn]) > 0 && where == "PostgreSQL ← Kafka" {
		got, more := median(rounds[byOn]), ratio(rounds[byOn], base)
		b.report.reach("consumer", got >= 8000 && more >= 10, "%s/s with `On`, %s/s with `OnBatch`; %s one per transaction",
			group(got), group(median(rounds[byBatch])), times(more))
	}
}

func (b *bench) chainTable(where string, results map[string][]chainResult) {
	rows := [][]string{{where, "orders/s placed", "events/s received", "behind at the end", "p50 / p99 of an order", "ratio", "processor µs an order: ours + PostgreSQL + Kafka", "enough for"}}
	rate := func(name string) (placed, received []float64) {
		for _, r := range results[name] {
			placed, received = append(placed, r.Placed.PerSecond), append(received, r.PerSecond)
		}
		return placed, received
	}
	_, base := rate("literal")
	for _, name := range []string{"literal", "ours"} {
		if len(results[name]) == 0 {
			continue
		}
		placed, received := rate(name)
		worst := slices.MaxFunc(results[name], func(x, y chainResult) int { return int(x.Behind - y.Behind) })
		last := results[name][len(results[name])-1]
		spent, limit := last.effort.an(last.Placed.Stored)
		rows = append(rows, []string{
			name, group(median(placed)), group(median(received)), worst.Behind.Round(time.Millisecond).String(),
			ms(worst.Placed.P50) + " / " + ms(worst.Placed.P99), times(ratio(received, base)), spent, group(limit) + "/s",
		})
		if name == "ours" && where == "PostgreSQL → Kafka" {
			got := median(received)
			b.report.reach("chain", got >= 4000, "%s/s; %s the literal design (%s/s)", group(got), times(ratio(received, base)), group(median(base)))
		}
	}
	b.report.table(rows...)
}
