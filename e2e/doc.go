// Package e2e tests the deployed system: the built binary, run as one process
// and as many, on each engine and each broker, killed, stopped, cut off from
// what it needs, and used through a real browser. The tests look at it from
// outside only: over HTTP, in its databases and topics, in the sandbox's
// evidence, in its logs and metrics. It owns no code of the product.
//
// DATABASE_URL names a PostgreSQL where the tests may create databases, and
// KAFKA_BROKERS an Apache Kafka on this machine whose topics and groups of
// Pizzaflow they delete. PIZZA_BINARY tests a binary that is built already.
// What is missing skips its tests with the reason, or fails them when
// PIZZA_TEST_REQUIRE names it: postgres, kafka, pgbouncer, kcat, chromium.
//
// A failing test prints all that is known of the order in question; with
// -artifacts -outputdir DIR the logs of all processes are kept.
package e2e
