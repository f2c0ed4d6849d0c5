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
	fetchWait    = time.Second   // after which a broker answers a fetch without records
	pulseTimeout = 4 * fetchWait // without an answer, after which Kafka counts as away
	fetchBytes   = 4 << 20       // of one answer
)

// Run reads the topics from their end until ctx ends, and hints at the orders that
// the records name. While Kafka is away, the streams poll the order API.
func (s *Service) Run(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		began := time.Now()
		err := s.tailTopics(ctx)
		s.pulse.reset()
		if err == nil || ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > time.Minute {
			attempt = 1
		}
		s.log.Warn("reading the topics failed, retrying", "error", err.Error())
		if !retry.Sleep(ctx, retry.Backoff(attempt, time.Second, 10*time.Second)) {
			return nil
		}
	}
}

// tailTopics reads the topics without a group, so that every replica sees every
// record. It returns errors that the client does not recover from, such as a topic
// that was deleted and created again.
func (s *Service) tailTopics(ctx context.Context) error {
	opts := append([]kgo.Opt{}, s.kafka...)
	client, err := kgo.NewClient(append(opts,
		kgo.ConsumeTopics(event.Topics()...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtEnd()),
		kgo.FetchMaxWait(fetchWait),
		kgo.FetchMaxBytes(fetchBytes),
		kgo.WithHooks(&s.pulse),
	)...)
	if err != nil {
		return fmt.Errorf("tail topics: %w", err)
	}
	defer client.Close()
	for {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if id := orderIDOf(r); id != "" {
				s.hub.hint(id)
			}
		})
		if errs := fetches.Errors(); len(errs) > 0 {
			return fmt.Errorf("tail %s: %w", errs[0].Topic, errs[0].Err)
		}
	}
}

// orderIDOf returns the order that a record is about, "" if it names none. The id is
// not checked: it is a hint.
func orderIDOf(r *kgo.Record) string {
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

// A pulse is the time of the last answer to a fetch. A broker answers fetches also
// without records, so no answer for pulseTimeout means that Kafka is away.
type pulse struct{ last atomic.Pointer[time.Time] }

// OnBrokerE2E is called by the Kafka client after every request.
func (p *pulse) OnBrokerE2E(_ kgo.BrokerMetadata, key int16, e kgo.BrokerE2E) {
	const fetch = 1
	if key == fetch && e.Err() == nil {
		now := time.Now()
		p.last.Store(&now)
	}
}

func (p *pulse) reset() { p.last.Store(nil) }

func (p *pulse) isAlive() bool {
	last := p.last.Load()
	return last != nil && time.Since(*last) < pulseTimeout
}
