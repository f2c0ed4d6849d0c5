package kafka

import "time"

// CleanEvery returns c for a broker that drops expired records that often.
func CleanEvery(c BrokerConfig, interval time.Duration) BrokerConfig {
	c.cleanEvery = interval
	return c
}

// MakePrivate is makePrivate.
var MakePrivate = makePrivate

// MaxConnections is maxConnections.
const MaxConnections = maxConnections

// Warn notes the warnings of a state.
func Warn(t *TopicState, brokers int) { t.warn(brokers) }

// Insync says what becomes of min.insync.replicas on so many replicas.
var Insync = insync

// Strangers counts the connections that are not of this process.
func Strangers(b *Broker) int {
	b.listener.mu.Lock()
	defer b.listener.mu.Unlock()
	return len(b.listener.strangers)
}

// MarkEvery returns c for a broker that notes that often up to when its data are whole.
func MarkEvery(c BrokerConfig, interval time.Duration) BrokerConfig {
	c.markEvery = interval
	return c
}
