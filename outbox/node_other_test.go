//go:build !unix

package outbox_test

const nodeEnvironment = "PIZZA_TEST_NODE"

// serveNode needs signals.
func serveNode(string) int { return 1 }
