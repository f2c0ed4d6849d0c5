package e2e

import (
	"strings"
	"testing"
	"time"

	server "pizzaflow/e2e/servers"
)

// oddSettings are settings that a role may have for other programs.
var oddSettings = []string{
	`DateStyle = 'German, DMY'`, `TimeZone = 'Asia/Kathmandu'`, `IntervalStyle = 'sql_standard'`, `bytea_output = 'escape'`, `extra_float_digits = -10`,
	`standard_conforming_strings = off`, `client_encoding = 'WIN1251'`, `search_path = 'pg_catalog'`, `default_transaction_isolation = 'serializable'`,
	`default_transaction_deferrable = on`, `synchronous_commit = off`, `plan_cache_mode = 'force_generic_plan'`, `transform_null_equals = on`, `array_nulls = off`,
}

// TestImpatientRole runs the services as a role with short time-outs for statements
// and locks, and with odd settings, while another session locks one table after
// another, each for longer than three attempts at a record take.
func TestImpatientRole(t *testing.T) {
	t.Parallel()
	database := server.Postgres(t)
	h := newHost(t, database, append(oddSettings, `lock_timeout = '250ms'`, `transaction_timeout = '4s'`, `idle_in_transaction_session_timeout = '1s'`,
		`idle_session_timeout = '2s'`)...)
	d := deploy(t, h.setup.with("RETRY_DELAY=50ms"))
	s := d.startStream(t, 5)
	s.awaitServed(t, paidLimit)
	ofAll := func(table string) (tables []string) {
		for _, service := range domain {
			tables = append(tables, service+"_service."+table)
		}
		return tables
	}
	locked := func(effect effect, tables ...string) {
		t.Run(strings.TrimPrefix(tables[0], "order_service."), func(t *testing.T) {
			d.runIncident(t, s, incident{effect: effect, lasts: 2 * time.Second, begin: func(t *testing.T) func() { return h.lock(t, tables...) }})
		})
	}
	locked(atIntake, "order_service.orders", "order_service.order_items")
	locked(atIntake, "order_service.idempotency_keys")
	locked(atIntake, ofAll("outbox_events")...)
	locked(byConsumers, ofAll("inbox_events")...)
	locked(noEffect, ofAll("parked_records")...)
	locked(byConsumers, "payment_service.payments")
	h.execute(t, `ALTER ROLE pizza RESET lock_timeout`, `ALTER ROLE pizza SET statement_timeout = '500ms'`, h.terminateSessions())
	locked(noEffect, "payment_service.payment_attempts")
	locked(byConsumers, "notification_service.order_contacts", "notification_service.notifications")
	locked(byConsumers, "notification_service.notification_deliveries")
	locked(noEffect, ofAll("outbox_published")...)
	locked(noEffect, ofAll("outbox_lease")...)
	locked(atIntake, "order_service.order_history")
	s.finish(t)
}
