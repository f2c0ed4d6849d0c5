package inbox

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/internal/retry"
)

// checkTopicsEvery is how often a consumer measures its lag and checks whether its
// topics were recreated.
const checkTopicsEvery = 5 * time.Second

// watchTopics checks the topics every checkTopicsEvery, and once a second at most
// when fetch errors ask for it, until ctx ends.
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
		checkCtx, cancel := context.WithTimeout(ctx, checkTopicsEvery)
		if err := d.checkTopics(checkCtx, client); err != nil && ctx.Err() == nil {
			d.c.errorLog.report("check topics", "", 0, err)
		}
		cancel()
		d.c.errorLog.closeQuiet()
		if !retry.Sleep(ctx, time.Second) { // however often fetch errors wake it
			return
		}
	}
}

// checkTopics measures the lag of all assigned partitions, idle and paused ones
// too, and resubscribes to topics that were recreated.
func (d *dispatcher) checkTopics(ctx context.Context, client *kgo.Client) error {
	adm := kadm.NewClient(client)
	details, err := adm.ListTopics(ctx, d.topics...)
	if err != nil {
		return err
	}
	for topic, detail := range details {
		if detail.Err == nil && d.adoptIfRecreated(topic, detail.ID) {
			d.c.cfg.Log.Warn("topic recreated: consuming the new one", "consumer_group", d.c.cfg.Group, "topic", topic)
			// the client itself never resubscribes to a recreated topic
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

// rememberTopicID stores the id of a topic the first time it is seen.
func (d *dispatcher) rememberTopicID(topic string, topicID [16]byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.topicIDs[topic] == [16]byte{} {
		d.topicIDs[topic] = topicID
	}
}

// adoptIfRecreated stores the id of a topic that was recreated, and reports whether
// it was: its id changed, or the broker did not know the topic for a while.
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
