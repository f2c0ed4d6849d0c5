package frontend

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/event"
	"pizzaflow/internal/retry"
)

const (
	fetchWait  = time.Second   // a broker with nothing to say answers after this long
	silence    = 4 * fetchWait // after which it is taken to be away
	fetchBytes = 4 << 20       // of one answer
)

// Run follows the topics from their end until ctx ends, and wakes the trackers of
// the orders that are spoken of. While Kafka is away, trackers read by themselves.
func (s *Service) Run(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		began := time.Now()
		err := s.tail(ctx)
		s.pulse.stop()
		if err == nil || ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > time.Minute {
			attempt = 1
		}
		s.log.Warn("topics not followed, beginning again", "error", err.Error())
		if !retry.Sleep(ctx, retry.Backoff(attempt, time.Second, 10*time.Second)) {
			return nil
		}
	}
}

// tail follows the topics without a group: every replica sees every record. What
// the client does not cure by itself (a topic that was deleted and made again) is
// returned.
func (s *Service) tail(ctx context.Context) error {
	opts := append([]kgo.Opt{}, s.kafka...)
	client, err := kgo.NewClient(append(opts,
		kgo.ConsumeTopics(event.Topics()...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtEnd()),
		kgo.FetchMaxWait(fetchWait),
		kgo.FetchMaxBytes(fetchBytes),
		kgo.WithHooks(&s.pulse),
	)...)
	if err != nil {
		return fmt.Errorf("follow topics: %w", err)
	}
	defer client.Close()
	for {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if id := orderOf(r); id != "" {
				s.hub.hint(id)
			}
		})
		if errs := fetches.Errors(); len(errs) > 0 {
			return fmt.Errorf("follow %s: %w", errs[0].Topic, errs[0].Err)
		}
	}
}

// orderOf tells which order a record is about, "" if none. It is a hint only, so
// nothing is checked.
func orderOf(r *kgo.Record) string {
	if r.Topic == event.OrderTopic {
		return string(r.Key)
	}
	var payment struct {
		OrderID string `json:"order_id"`
	}
	if e, err := event.Open(r.Value); err != nil || json.Unmarshal(e.EventData, &payment) != nil {
		return ""
	}
	return payment.OrderID
}

// A pulse beats with every answer to a fetch. A broker answers even when it has
// nothing to say, so silence means that it is away.
type pulse struct{ last atomic.Pointer[time.Time] }

// OnBrokerE2E is called by the Kafka client after every request.
func (p *pulse) OnBrokerE2E(_ kgo.BrokerMetadata, key int16, e kgo.BrokerE2E) {
	const fetch = 1
	if key == fetch && e.Err() == nil {
		now := time.Now()
		p.last.Store(&now)
	}
}

func (p *pulse) stop() { p.last.Store(nil) }

func (p *pulse) alive() bool {
	last := p.last.Load()
	return last != nil && time.Since(*last) < silence
}
