package inbox

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/internal/retry"
)

// lookEvery is how often a consumer looks at its topics: how long they are, and
// whether they are those it knows.
const checkTopicsEvery = 5 * time.Second

// watch looks at the topics until ctx ends.
func (d *dispatcher) watchTopics(ctx context.Context, client *kgo.Client) {
	tick := time.NewTicker(checkTopicsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-d.checkNow:
		}
		look, cancel := context.WithTimeout(ctx, checkTopicsEvery)
		if err := d.checkTopics(look, client); err != nil && ctx.Err() == nil {
			d.c.errorLog.report("look at the topics", "", 0, err)
		}
		cancel()
		d.c.errorLog.closeQuiet()
		if !retry.Sleep(ctx, time.Second) { // whatever the suspicions
			return
		}
	}
}

// look measures the lag of what is assigned, paused or idle as it may be, and
// finds topics that were deleted and created again.
func (d *dispatcher) checkTopics(ctx context.Context, client *kgo.Client) error {
	adm := kadm.NewClient(client)
	details, err := adm.ListTopics(ctx, d.topics...)
	if err != nil {
		return err
	}
	for topic, detail := range details {
		if detail.Err == nil && d.adoptIfRecreated(topic, detail.ID) {
			d.c.cfg.Log.Warn("a topic was created anew: it is taken up", "consumer_group", d.c.cfg.Group, "topic", topic)
			// the client never takes up another topic of the same name by itself
			client.PurgeTopicsFromConsuming(topic)
			client.AddConsumeTopics(topic)
		}
	}
	ends, err := adm.ListEndOffsets(ctx, d.topics...)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.partitions {
		if end, ok := ends.Lookup(p.topic, p.partition); ok && end.Err == nil {
			p.highWatermark = end.Offset
			d.setLag(p)
		}
	}
	return nil
}

// meet remembers the id of a topic that was not known.
func (d *dispatcher) rememberTopicID(topic string, topicID [16]byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.topicIDs[topic] == [16]byte{} {
		d.topicIDs[topic] = topicID
	}
}

// isNew reports whether a topic is another than the one that is consumed.
func (d *dispatcher) adoptIfRecreated(topic string, topicID [16]byte) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	known, lost := d.topicIDs[topic], d.unknownTopics[topic]
	if topicID == [16]byte{} || !lost && (known == topicID || known == [16]byte{}) {
		return false
	}
	delete(d.unknownTopics, topic)
	d.topicIDs[topic] = topicID
	return true
}
