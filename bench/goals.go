package main

// A goal is a line of what must be reached.
type goal struct{ key, what, on, must, aim string }

func goals() []goal {
	return []goal{
		{"drain real", "relay drain, per-key order kept", "PostgreSQL → Kafka", "90,000 events/s; ≥ 50 × literal; ≥ 15 × the best Go peer; ≥ 2 × Debezium", "180,000/s; ≥ 4 × Debezium"},
		{"drain embedded", "relay drain, per-key order kept", "PostgreSQL → embedded", "90,000 events/s; ≥ 50 × literal", "180,000/s"},
		{"relay memory", "relay: memory", "PostgreSQL → Kafka", "≤ 100 MiB", "≤ 50 MiB"},
		{"relay cpu", "relay: processor seconds for a million, PostgreSQL's included", "PostgreSQL → Kafka", "≤ 12 s", "≤ 6 s"},
		{"latency 50", "commit → consumer at 50/s", "PostgreSQL → Kafka", "p50 ≤ 2 ms, p99 ≤ 15 ms", "p50 ≤ 1 ms, p99 ≤ 5 ms"},
		{"latency 500", "commit → consumer at 500/s", "PostgreSQL → Kafka", "p50 ≤ 2 ms, p99 ≤ 15 ms", "p50 ≤ 1 ms, p99 ≤ 5 ms"},
		{"intake PostgreSQL", "order intake, 32 clients", "PostgreSQL", "6,000/s; ≥ 4 × one transaction per order", "12,000/s"},
		{"intake SQLite", "order intake, 32 clients", "SQLite `FULL`", "8,000/s", "16,000/s"},
		{"consumer", "consumer with inbox, effect and outbox", "PostgreSQL", "8,000 records/s; ≥ 10 × one per transaction", "20,000/s (`OnBatch`)"},
		{"chain", "orders → relay → broker → consumer, 32 clients", "PostgreSQL", "4,000/s", "7,500/s"},
		{"paid embedded", "201 → paid, 50 orders/s, instant provider", "embedded", "p50 ≤ 25 ms, p99 ≤ 100 ms", "p50 ≤ 8 ms, p99 ≤ 40 ms"},
		{"paid real", "201 → paid, 50 orders/s, instant provider", "PostgreSQL → Kafka", "p50 ≤ 25 ms, p99 ≤ 100 ms", "p50 ≤ 8 ms, p99 ≤ 40 ms"},
		{"flow embedded", "whole flow, to two mails and two SMS", "embedded", "500 orders/s", "1,500 orders/s"},
		{"flow real", "whole flow, to two mails and two SMS", "PostgreSQL → Kafka", "500 orders/s", "1,500 orders/s"},
		{"start", "start", "embedded", "≤ 2 s", "≤ 1 s"},
		{"memory", "memory at 100 orders/s", "embedded", "≤ 200 MiB", "≤ 120 MiB"},
	}
}

func (r *report) goalRows() [][]string {
	rows := [][]string{{"what", "on", "must", "aim", "measured", "met"}}
	for _, g := range goals() {
		measured, met := r.goals[g.key], "no"
		switch {
		case measured == "":
			measured, met = "not in this run", "–"
		case r.met[g.key]:
			met = "yes"
		}
		rows = append(rows, []string{g.what, g.on, g.must, g.aim, measured, met})
	}
	return rows
}
