package inbox

import (
	"sync"
	"time"
)

// An errorLog logs errors of the brokers that repeat as one incident: once when it
// begins and once when it is over.
type errorLog struct {
	cfg       Config
	mu        sync.Mutex
	incidents map[incidentKey]*incident
}

// An incidentKey identifies an incident by what failed and where.
type incidentKey struct {
	doing     string // fetch, commit offsets, check topics
	topic     string // "" when the error is of none in particular
	partition int32
}

// An incident is a series of equal errors.
type incident struct{ since, last time.Time } // of its first and its last error

// quietPeriod is how long an error must not occur for its incident to be over.
const quietPeriod = 15 * time.Second

// report adds an error to its incident, and logs the first one.
func (l *errorLog) report(doing, topic string, partition int32, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key, now := incidentKey{doing, topic, partition}, time.Now()
	if l.incidents[key] == nil {
		l.incidents[key] = &incident{since: now}
		l.cfg.Log.Error("kafka error", "doing", doing, "consumer_group", l.cfg.Group, "topic", topic, "partition", partition, "err", err)
	}
	l.incidents[key].last = now
}

// closeQuiet ends and logs the incidents without an error for quietPeriod.
func (l *errorLog) closeQuiet() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, i := range l.incidents {
		if time.Since(i.last) > quietPeriod {
			delete(l.incidents, key)
			l.cfg.Log.Info("kafka error resolved", "doing", key.doing, "consumer_group", l.cfg.Group, "topic", key.topic, "partition", key.partition,
				"incident_seconds", i.last.Sub(i.since).Seconds())
		}
	}
}
