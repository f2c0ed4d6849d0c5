package embedded

import "time"

// CleanEvery returns c for a broker that drops expired records that often.
func CleanEvery(c Config, interval time.Duration) Config {
	c.cleanEvery = interval
	return c
}

// MakePrivate is makePrivate.
var MakePrivate = makePrivate

// MaxConnections is maxConnections.
const MaxConnections = maxConnections

// Strangers counts the connections that are not of this process.
func Strangers(b *Broker) int {
	b.listener.mu.Lock()
	defer b.listener.mu.Unlock()
	return len(b.listener.strangers)
}

// MarkEvery returns c for a broker that notes that often up to when its data are whole.
func MarkEvery(c Config, interval time.Duration) Config {
	c.markEvery = interval
	return c
}
