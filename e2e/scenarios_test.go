package e2e

import (
	"slices"
	"testing"

	"pizzaflow/sqldb"
)

// A scenario is a test that runs in several setups.
type scenario struct {
	name string
	run  func(t *testing.T, s setup)
}

var scenarios = []scenario{
	{"Order", testOrder},
	{"BadInput", testBadInput},
	{"Payments", testPayments},
	{"DeadLetters", testDeadLetters},
	{"ForeignWriter", testForeignWriter},
	{"Kill", testKill},
	{"Terminate", testTerminate},
	{"OutsideAway", testOutsideAway},
}

// The scenarios that only one of the brokers can have.
var (
	embeddedOnly = []scenario{{"BrokerWiped", testBrokerWiped}}
	kafkaOnly    = []scenario{{"TopicsRecreated", testTopicsRecreated}, {"Refused", testRefused}}
)

// TestEmbedded needs nothing but the binary.
func TestEmbedded(t *testing.T) {
	t.Parallel()
	for _, s := range slices.Concat(scenarios, embeddedOnly) {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.run(t, embedded)
		})
	}
}

// TestServers runs on PostgreSQL and Apache Kafka: one scenario after the other,
// because the topics have fixed names.
func TestServers(t *testing.T) {
	t.Parallel()
	databaseServer(t)
	kafkaBrokers(t)
	for _, s := range slices.Concat(scenarios, kafkaOnly) {
		t.Run(s.name, func(t *testing.T) { s.run(t, servers) })
	}
	t.Run("Apart", func(t *testing.T) {
		for _, s := range []scenario{{"Order", testOrder}, {"Kill", testKill}} {
			t.Run(s.name, func(t *testing.T) { s.run(t, apart) })
		}
	})
	t.Run("Many", func(t *testing.T) {
		for _, s := range []scenario{{"Order", testOrder}, {"RollingRestart", testRollingRestart}} {
			t.Run(s.name, func(t *testing.T) { s.run(t, many) })
		}
	})
}

// TestMixed runs the other combinations of engine, broker and processes.
func TestMixed(t *testing.T) {
	t.Parallel()
	order, kill := scenario{"Order", testOrder}, scenario{"Kill", testKill}
	for _, mix := range []struct {
		name      string
		setup     setup
		scenarios []scenario
	}{
		{"SQLiteEmbeddedApart", setup{engine: sqldb.SQLite, processes: slices.Concat(apart.processes, []string{"broker"})}, []scenario{order, kill}},
		{"SQLiteKafka", setup{engine: sqldb.SQLite, realKafka: true}, []scenario{order}},
		{"SQLiteKafkaApart", setup{engine: sqldb.SQLite, realKafka: true, processes: apart.processes}, []scenario{order}},
		{"PostgresEmbedded", setup{engine: sqldb.Postgres}, []scenario{order, kill}},
		{"PostgresEmbeddedApart", setup{engine: sqldb.Postgres, processes: slices.Concat(apart.processes, []string{"broker"})}, []scenario{order}},
	} {
		t.Run(mix.name, func(t *testing.T) {
			t.Parallel()
			for _, s := range mix.scenarios {
				t.Run(s.name, func(t *testing.T) { s.run(t, mix.setup) })
			}
		})
	}
}
