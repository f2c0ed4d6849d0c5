package kafka

// Warn notes the warnings of a state.
func Warn(t *TopicState, brokers int) { t.warn(brokers) }

// Insync says what becomes of min.insync.replicas on so many replicas.
var Insync = insync
