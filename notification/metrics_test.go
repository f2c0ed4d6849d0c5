package notification

import (
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/sqldb"
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

// While the mail server is away and the gateway loses its answers, the page
// shows for each channel what waits, for how long, and what may have been sent.
func TestWaitingDeliveriesAreShown(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		w.mail.set(func() { w.mail.shut = true })
		gateway := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(rw).Hijack()
			if err == nil {
				err = conn.(*net.TCPConn).SetLinger(0)
				conn.Close()
			}
			if err != nil {
				t.Error(err)
			}
		}))
		t.Cleanup(gateway.Close)
		email, err := NewSMTP("smtp://"+w.mail.addr, nil)
		if err != nil {
			t.Fatal(err)
		}
		sms, err := NewSMS(gateway.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		reg := prometheus.NewRegistry()
		w.edit = func(c *Config) { c.Metrics = reg }
		s := w.serviceWith(email, sms)
		o := newOrder("")
		w.handle(s, o.created(), o.paid())
		w.run(s)
		w.eventually("all were tried", func() bool {
			var n int
			err := db.QueryRowContext(t.Context(), `SELECT COUNT(error) FROM notification_deliveries`).Scan(&n)
			return err == nil && n == 4
		})
		if _, err := db.ExecContext(t.Context(), `UPDATE notification_deliveries SET created_at = $1 WHERE channel = 'email'`, sqldb.Now().Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
		w.eventually("all is shown", func() bool {
			all := gauges(t, reg)
			old, young := all["pizza_notification_deliveries_oldest_seconds email"], all["pizza_notification_deliveries_oldest_seconds sms"]
			return all["pizza_notification_deliveries_waiting email"] == 2 && all["pizza_notification_deliveries_waiting sms"] == 2 &&
				all["pizza_notification_deliveries_unknown email"] == 0 && all["pizza_notification_deliveries_unknown sms"] == 2 &&
				old > 3600 && old < 3720 && young > 0 && young < 120
		})
	})
}
