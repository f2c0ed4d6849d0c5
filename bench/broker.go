package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/kafka"
	"pizzaflow/kafka/embedded"
)

// The topics that everything here uses: what a measurement reads begins where
// the topic ended before it.
const (
	orderTopic   = "order-events"
	paymentTopic = "payment-events"
)

// topics are as the system makes them: 12 partitions on Kafka, 3 on the
// embedded broker.
func topics(partitions int) []kafka.Topic {
	return []kafka.Topic{
		{Name: orderTopic, Partitions: partitions, Replicas: -1},
		{Name: paymentTopic, Partitions: partitions, Replicas: -1},
	}
}

type brokerOrder struct{ Dir string }

// playBroker is the embedded broker, as the system runs it.
func playBroker(ctx context.Context, text json.RawMessage, ready func(any) error) (_ any, err error) {
	var order brokerOrder
	if err := json.Unmarshal(text, &order); err != nil {
		return nil, err
	}
	broker, err := startEmbedded(ctx, order.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, broker.Close()) }()
	if err := ready(broker.Addrs()); err != nil {
		return nil, err
	}
	<-ctx.Done()
	return nil, nil
}

func startEmbedded(ctx context.Context, dir string) (*embedded.Broker, error) {
	broker, err := embedded.Start(embedded.Config{Dir: dir, Listen: "127.0.0.1:0"})
	if err != nil {
		return nil, err
	}
	if err := kafka.EnsureTopics(ctx, kafka.Config{Brokers: broker.Addrs()}, nil, topics(3)...); err != nil {
		return nil, errors.Join(err, broker.Close())
	}
	return broker, nil
}

// client makes a Kafka client as the system makes them.
func client(brokers []string, opts ...kgo.Opt) (*kgo.Client, error) {
	base, err := kafka.Config{Brokers: brokers}.Options()
	if err != nil {
		return nil, err
	}
	return kgo.NewClient(append(base, opts...)...)
}

// A stretch is what comes to a topic from the moment it was marked.
type stretch struct {
	client *kgo.Client
	adm    *kadm.Client
	topic  string
	from   map[int32]int64
}

// mark begins a stretch at the topic's present end.
func mark(ctx context.Context, brokers []string, topic string) (*stretch, error) {
	c, err := client(brokers)
	if err != nil {
		return nil, err
	}
	s := &stretch{client: c, adm: kadm.NewClient(c), topic: topic}
	if s.from, err = s.ends(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return s, nil
}

func (s *stretch) ends(ctx context.Context) (map[int32]int64, error) {
	listed, err := s.adm.ListEndOffsets(ctx, s.topic)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("ask where %s ends: %w", s.topic, err)
	}
	ends := map[int32]int64{}
	listed.Each(func(o kadm.ListedOffset) { ends[o.Partition] = o.Offset })
	return ends, nil
}

// count is how many records have come.
func (s *stretch) count(ctx context.Context) (int64, error) {
	ends, err := s.ends(ctx)
	var n int64
	for p, end := range ends {
		n += end - s.from[p]
	}
	return n, err
}

// pace is how fast records came: from the first look that saw any to the last
// that saw more.
type pace struct {
	first, last     time.Time
	atFirst, atLast int64
}

func (p pace) perSecond() float64 {
	d := p.last.Sub(p.first).Seconds()
	if d <= 0 {
		return 0
	}
	return float64(p.atLast-p.atFirst) / d
}

// watch looks at the topic's end every 20 ms until want records have come, or
// the box is full, which begins with the first record. It gives up when none
// comes for patience.
func (s *stretch) watch(ctx context.Context, want int64, box, patience time.Duration) (pace, error) {
	var p pace
	looks := time.NewTicker(20 * time.Millisecond)
	defer looks.Stop()
	moved := time.Now()
	for {
		n, err := s.count(ctx)
		if err != nil {
			return p, err
		}
		now := time.Now()
		switch {
		case n > 0 && p.first.IsZero():
			p = pace{first: now, last: now, atFirst: n, atLast: n}
			moved = now
		case n > p.atLast:
			p.last, p.atLast, moved = now, n, now
		case now.Sub(moved) > patience:
			return p, fmt.Errorf("nothing came for %s, after %d of %d records", patience, n, want)
		}
		if n >= want || !p.first.IsZero() && now.Sub(p.first) >= box {
			return p, nil
		}
		select {
		case <-ctx.Done():
			return p, ctx.Err()
		case <-looks.C:
		}
	}
}

// settle waits until nothing has come for half a second: records that came
// twice may stand for some that have not come yet.
func (s *stretch) settle(ctx context.Context) error {
	before := int64(-1)
	for {
		n, err := s.count(ctx)
		if err != nil || n == before {
			return err
		}
		before = n
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// each reads the whole stretch again.
func (s *stretch) each(ctx context.Context, fn func(*kgo.Record)) error {
	ends, err := s.ends(ctx)
	if err != nil {
		return err
	}
	from := map[int32]kgo.Offset{}
	for p, end := range ends {
		if end > s.from[p] {
			from[p] = kgo.NewOffset().At(s.from[p])
		}
	}
	if len(from) == 0 {
		return nil
	}
	c, err := client(s.client.OptValue(kgo.SeedBrokers).([]string), kgo.FetchMaxBytes(16<<20), kgo.FetchMaxPartitionBytes(4<<20),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{s.topic: from}))
	if err != nil {
		return err
	}
	defer c.Close()
	for len(from) > 0 {
		fetches := c.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("read %s: %w", s.topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset >= ends[r.Partition] {
				return
			}
			fn(r)
			if r.Offset == ends[r.Partition]-1 {
				delete(from, r.Partition)
			}
		})
	}
	return nil
}

// forget lets the broker delete what has come, and closes the stretch.
func (s *stretch) forget(ctx context.Context) error {
	defer s.client.Close()
	ends, err := s.ends(ctx)
	if err != nil {
		return err
	}
	offsets := kadm.Offsets{}
	for _, p := range slices.Sorted(maps.Keys(ends)) {
		offsets.AddOffset(s.topic, p, ends[p], -1)
	}
	deleted, err := s.adm.DeleteRecords(ctx, offsets)
	if err == nil {
		err = deleted.Error()
	}
	if err != nil {
		return fmt.Errorf("delete records of %s: %w", s.topic, err)
	}
	return nil
}
