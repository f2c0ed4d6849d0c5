package inbox

import (
	"sync"
	"time"
)

// complaints logs what goes wrong again and again when it begins and when it
// has ended.
type errorLog struct {
	cfg       Config
	mu        sync.Mutex
	incidents map[incidentKey]*incident
}

type incidentKey struct {
	doing, topic string
	partition    int32
}

type incident struct{ since, last time.Time }

// calm is how long nothing must be heard of a trouble that it has ended.
const quietPeriod = 15 * time.Second

func (c *errorLog) report(what, topic string, partition int32, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, now := incidentKey{what, topic, partition}, time.Now()
	if c.incidents[at] == nil {
		c.incidents[at] = &incident{since: now}
		c.cfg.Log.Error("trouble with the brokers", "doing", what, "consumer_group", c.cfg.Group, "topic", topic, "partition", partition, "err", err)
	}
	c.incidents[at].last = now
}

// settle says of what has ended.
func (c *errorLog) closeQuiet() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for at, t := range c.incidents {
		if time.Since(t.last) > quietPeriod {
			delete(c.incidents, at)
			c.cfg.Log.Info("no more trouble with the brokers", "doing", at.doing, "consumer_group", c.cfg.Group, "topic", at.topic, "partition", at.partition,
				"trouble_seconds", t.last.Sub(t.since).Seconds())
		}
	}
}
