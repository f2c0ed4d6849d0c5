package relay

import (
	"database/sql"
	"testing"

	"pizzaflow/outbox/internal/store"
)

// The versions of an id are counted for each topic.
func TestVersionsByTopic(t *testing.T) {
	at := func(topic string, version int64) *store.Row {
		return &store.Row{Topic: topic, AggregateID: "1", Version: sql.NullInt64{Int64: version, Valid: true}}
	}
	var v versions
	v.note(at("orders", 4))
	if v.follows(at("customers", 5)) {
		t.Error("version 5 of a customer follows version 4 of an order")
	}
	if v.note(at("customers", 1)); !v.follows(at("orders", 5)) {
		t.Error("version 5 of an order does not follow version 4")
	}
}
