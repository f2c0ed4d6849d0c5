// Package e2e tests the deployed system: the built binary, run as one process
// and as many, on each engine and each broker, killed, stopped, cut off from its
// servers, and used through a real browser. The tests observe it only from outside:
// over HTTP, in its databases and topics, in the records of the sandbox, in its logs
// and metrics. The package has no code of the product.
//
// DATABASE_URL names a PostgreSQL where the tests may create databases, and
// KAFKA_BROKERS an Apache Kafka on this machine whose topics and groups of
// Pizzaflow they delete. PIZZA_BINARY tests a binary that is built already.
// Tests that need a server or program which is missing are skipped with the reason,
// or fail when PIZZA_TEST_REQUIRE names it: postgres, kafka, pgbouncer, kcat,
// chromium.
//
// A failing test prints the history of the order in question from all databases and
// topics; with -artifacts -outputdir DIR the logs of all processes are kept.
package e2e
