package payment

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// gauges are a registry's, by name and the value of their label.
func gauges(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			all[family.GetName()+" "+m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return all
}

// What the provider has not answered is shown, with its age by the database's
// clock, while the provider is silent.
func TestUnansweredPaymentsAreShown(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		reg := prometheus.NewRegistry()
		s := newService(t, db, provide(t, hang), func(c *Config) { c.Metrics = reg })
		run(t, s)
		accept(t, s, order(""))
		eventually(t, func() string {
			var status string
			err := db.QueryRowContext(t.Context(), `SELECT status FROM payments`).Scan(&status)
			if err != nil || status != string(Unknown) {
				return "the payment is " + status
			}
			return ""
		})
		if _, err := db.ExecContext(t.Context(), `UPDATE payments SET created_at = $1`, sqldb.Now().Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() string {
			all := gauges(t, reg)
			n, shown := all["pizza_payments_unanswered unknown"]
			if age := all["pizza_payments_unanswered_oldest_seconds unknown"]; !shown || n != 1 || age < 3600 || age > 3720 {
				return "not shown"
			}
			if none, shown := all["pizza_payments_unanswered_oldest_seconds processing"]; !shown || none != 0 {
				return "the age of none is shown wrong"
			}
			return ""
		})
		before := gauges(t, reg)["pizza_payments_unanswered_oldest_seconds unknown"]
		eventually(t, func() string {
			if gauges(t, reg)["pizza_payments_unanswered_oldest_seconds unknown"] <= before+.1 {
				return "the age does not grow between two counts"
			}
			return ""
		})
	}, schemas...)
}

// A table that cannot be read costs the page its family, and is counted.
func TestUnreadablePaymentsAreCountedAsAnError(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		reg := prometheus.NewRegistry()
		s := newService(t, db, openBank(t).provider(), func(c *Config) { c.Metrics = reg })
		if _, err := db.ExecContext(t.Context(), `ALTER TABLE payments RENAME TO elsewhere`); err != nil {
			t.Fatal(err)
		}
		defer s.metrics.unanswered.Start(t.Context())()
		eventually(t, func() string {
			all := gauges(t, reg)
			if _, shown := all["pizza_payments_unanswered unknown"]; shown {
				return "payments that cannot be counted are shown"
			}
			if all["pizza_metrics_errors_total payments_unanswered"] != 1 {
				return "not counted"
			}
			return ""
		})
	}, schemas...)
}
