package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kerr"

	"pizzaflow/sqldb"
)

// The relay stores the ids of the topics that it publishes to. A topic that was
// deleted and created again, or whose cluster lost its data, has another id and is
// empty: then all retained events are published again (rewind.go), and the inboxes
// of the consumers see to it that each is handled once.

// watchEvery is how often the topics are checked while nothing is wrong.
const watchEvery = 10 * time.Second

// A topicIdentity distinguishes a topic from another of the same name.
type topicIdentity struct{ cluster, topic string }

// known reports whether the broker has said which topic it is: an old broker knows
// no ids, and a starting one may not know that of its cluster.
func (i topicIdentity) known() bool { return i.cluster != "" && i.topic != uuid.Nil.String() }

// watchTopics ends the term when a topic was created anew.
func (t *term) watchTopics(ctx context.Context) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-t.topicCheck:
		}
		ask, cancel := context.WithTimeout(ctx, watchEvery)
		err := t.checkTopics(ask)
		cancel()
		if errors.Is(err, errRewound) || err != nil && ctx.Err() == nil && ask.Err() == nil {
			return err
		}
	}
}

// checkTopics compares the stored ids of topics with those at the brokers. A topic
// that does not exist changes nothing: it may come back.
func (t *term) checkTopics(ctx context.Context) error {
	known, err := t.knownTopics(ctx)
	if err != nil || len(known) == 0 {
		return err
	}
	found, err := t.describe(ctx, t.producer, slices.Sorted(maps.Keys(known))...)
	if err != nil {
		return err
	}
	for topic, f := range found {
		if f.err == nil && f.identity.known() && f.identity != known[topic] {
			t.cfg.Log.Error("topic was created anew: all retained events are published again", "service", t.cfg.Service, "topic", topic)
			return t.rewindAll(ctx, found)
		}
	}
	return nil
}

// suspectTopics has the topics checked at once when err may mean that one was
// created anew.
func (t *term) suspectTopics(err error) {
	if errors.Is(err, kerr.UnknownTopicID) || errors.Is(err, kerr.UnknownTopicOrPartition) {
		select {
		case t.topicCheck <- struct{}{}:
		default:
		}
	}
}

// knownTopics reads the stored ids of topics.
func (t *term) knownTopics(ctx context.Context) (map[string]topicIdentity, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	conn, giveBack, err := t.borrowConn(ctx)
	if err != nil {
		return nil, fmt.Errorf("read topics: %w", err)
	}
	defer giveBack()
	rows, err := conn.QueryContext(ctx, `SELECT topic, cluster_id, topic_id FROM outbox_topics`)
	if err != nil {
		return nil, fmt.Errorf("read topics: %w", err)
	}
	defer rows.Close()
	known := map[string]topicIdentity{}
	for rows.Next() {
		var topic string
		var id topicIdentity
		if err := rows.Scan(&topic, &id.cluster, &id.topic); err != nil {
			return nil, fmt.Errorf("read topics: %w", err)
		}
		known[topic] = id
	}
	return known, rows.Err()
}

// rememberTopicID stores the id of the topic that events go to, unless one is
// stored.
func (t *term) rememberTopicID(ctx context.Context, topic string, is topicIdentity) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	unlock, err := t.lease.lockConn(ctx)
	if err != nil {
		return fmt.Errorf("remember topic: %w", err)
	}
	defer unlock()
	_, err = t.lease.conn.ExecContext(ctx, `INSERT INTO outbox_topics (topic, cluster_id, topic_id, since) VALUES ($1, $2, $3, $4) ON CONFLICT (topic) DO NOTHING`,
		topic, is.cluster, is.topic, sqldb.Now())
	if err != nil {
		return fmt.Errorf("remember topic: %w", err)
	}
	return nil
}
