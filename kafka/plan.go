package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// An Action is what becomes of a Difference.
type Action string

// The actions.
const (
	Create Action = "create" // the topic is missing
	Change Action = "change" // a setting of the topic
	Extend Action = "extend" // partitions are added, as was allowed
	Leave  Action = "leave"  // it stays as it is, and Why says why
)

// A Difference is one way in which a topic is not as it should be.
type Difference struct {
	Topic   string `json:"topic"`
	Setting string `json:"setting"` // "topic", "partitions", "replication.factor", or the broker's name of a setting
	Is      string `json:"is"`      // "" when the topic is missing
	Want    string `json:"want"`
	Action  Action `json:"action"`
	Why     string `json:"why,omitempty"`
	Done    bool   `json:"done"` // by ApplyTopics
}

// planTimeout bounds each look at the topics; whoever plans is a person who waits.
const planTimeout = 20 * time.Second

// PlanTopics tells in what the brokers' topics differ from those wanted, and changes nothing. A setting that is
// left to the broker differs in nothing. Partitions are added only where repartition allows it: whatever has a
// key may fall to another partition then, and is no longer behind what was written before.
func PlanTopics(ctx context.Context, c Config, repartition bool, topics ...Topic) ([]Difference, error) {
	var plan []Difference
	err := administer(ctx, c, func(ctx context.Context, admin *kadm.Client) error {
		var err error
		plan, err = differences(ctx, admin, repartition, topics)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("plan topics: %w", err)
	}
	return plan, nil
}

// ApplyTopics makes the topics what they should be, as far as PlanTopics says that it can be done, and returns
// the plan with what is done by now, also beside an error. It returns when the brokers tell of the change, can be
// repeated, and done by several at once.
func ApplyTopics(ctx context.Context, c Config, log *slog.Logger, repartition bool, topics ...Topic) ([]Difference, error) {
	plan, err := PlanTopics(ctx, c, repartition, topics...)
	if err != nil {
		return nil, err
	}
	if err := createPlanned(ctx, c, log, plan, topics); err != nil {
		return plan, fmt.Errorf("apply topics: %w", err)
	}
	err = administer(ctx, c, func(ctx context.Context, admin *kadm.Client) error {
		for i := range plan {
			if err := plan[i].apply(ctx, admin); err != nil {
				return err
			}
		}
		return awaitApplied(ctx, admin, plan, repartition, topics)
	})
	if err != nil {
		return plan, fmt.Errorf("apply topics: %w", err)
	}
	return plan, nil
}

// awaitApplied waits until nothing that is done differs any more: the controller says yes before the brokers know.
func awaitApplied(ctx context.Context, admin *kadm.Client, plan []Difference, repartition bool, topics []Topic) error {
	for {
		now, err := differences(ctx, admin, repartition, topics)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(now, func(d Difference) bool {
			return slices.ContainsFunc(plan, func(p Difference) bool { return p.Done && p.Topic == d.Topic && p.Setting == d.Setting })
		}) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("what was changed is not visible yet: %w", ctx.Err())
		case <-time.After(firstPause):
		}
	}
}

// createPlanned creates what the plan says is missing and waits for the leaders.
func createPlanned(ctx context.Context, c Config, log *slog.Logger, plan []Difference, topics []Topic) error {
	var missing []Topic
	for _, t := range topics {
		if slices.ContainsFunc(plan, func(d Difference) bool { return d.Topic == t.Name && d.Action == Create }) {
			missing = append(missing, t)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, planTimeout)
	defer cancel()
	if err := EnsureTopics(ctx, c, log, missing...); err != nil {
		return err
	}
	for i := range plan {
		plan[i].Done = plan[i].Action == Create
	}
	return nil
}

// administer runs fn with a client that gives up soon when nobody answers.
func administer(ctx context.Context, c Config, fn func(context.Context, *kadm.Client) error) error {
	opts, err := c.Options()
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(append(opts, kgo.RetryTimeout(planTimeout/4))...)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, planTimeout)
	defer cancel()
	if _, err := kadm.NewClient(client).BrokerMetadata(ctx); err != nil { // Ping shares one request among its tries
		return noAnswer(strings.Join(c.Brokers, ","), err)
	}
	return fn(ctx, kadm.NewClient(client))
}

func differences(ctx context.Context, admin *kadm.Client, repartition bool, topics []Topic) ([]Difference, error) {
	var plan []Difference
	states, err := states(ctx, admin, namesOf(topics))
	if err != nil {
		return nil, err
	}
	for i, t := range topics {
		if err := t.validate(); err != nil {
			return nil, err
		}
		if states[i].Missing {
			plan = append(plan, Difference{Topic: t.Name, Setting: "topic", Want: t.text(), Action: Create})
			continue
		}
		plan = append(plan, t.differences(states[i], repartition)...)
	}
	return plan, nil
}

func namesOf(topics []Topic) []string {
	var names []string
	for _, t := range topics {
		names = append(names, t.Name)
	}
	return names
}

// text is what a missing topic will be.
func (t Topic) text() string {
	copies := "the broker's number of replicas"
	if t.Replicas > 0 {
		copies = fmt.Sprintf("replication.factor=%d", t.Replicas)
	}
	parts := []string{fmt.Sprintf("partitions=%d", t.Partitions), copies}
	for _, s := range t.settings() {
		parts = append(parts, s.name+"="+s.value)
	}
	return strings.Join(parts, ", ")
}

// differences compares t with what there is.
func (t Topic) differences(is TopicState, repartition bool) []Difference {
	var out []Difference
	differ := func(setting, is, want string, action Action, why string) {
		if is != want {
			out = append(out, Difference{Topic: t.Name, Setting: setting, Is: is, Want: want, Action: action, Why: why})
		}
	}
	action, why := Leave, "Kafka never takes partitions away"
	switch n := len(is.Partitions); {
	case n < t.Partitions && repartition:
		action, why = Extend, "keys may fall to other partitions: their order across the change is lost"
	case n < t.Partitions:
		why = "keys may fall to other partitions, and their order would be lost: drain the topic and allow it with --allow-repartition"
	}
	differ("partitions", strconv.Itoa(len(is.Partitions)), strconv.Itoa(t.Partitions), action, why)
	if t.Replicas > 0 {
		differ("replication.factor", strconv.Itoa(is.ReplicationFactor), strconv.Itoa(t.Replicas), Leave,
			"replicas are moved with Kafka's own kafka-reassign-partitions")
	}
	for _, s := range t.settings() {
		action, why := Change, t.loss(s, is.Settings[s.name])
		if s.name == "min.insync.replicas" {
			action, why = insync(s.value, is.ReplicationFactor)
		}
		differ(s.name, is.Settings[s.name], s.value, action, why)
	}
	return out
}

// insync says what becomes of min.insync.replicas where there are so many replicas: it may stop all writing.
func insync(want string, replicas int) (Action, string) {
	least, _ := strconv.Atoi(want) // we wrote it
	switch {
	case least > replicas:
		return Leave, fmt.Sprintf("that is more than the %d replicas there are, and older brokers would take no records: add replicas first", replicas)
	case least == replicas && replicas > 1:
		return Change, "while one broker is away nothing can be written"
	}
	return Change, ""
}

// loss says which records a changed setting deletes.
func (t Topic) loss(s setting, is string) string {
	now, err := strconv.ParseInt(is, 10, 64)
	want, _ := strconv.ParseInt(s.value, 10, 64) // we wrote it
	switch shorter := err == nil && (now < 0 || want < now); {
	case shorter && s.name == "retention.ms":
		return fmt.Sprintf("records older than %s are deleted", t.Retention)
	case shorter && s.name == "retention.bytes":
		return fmt.Sprintf("records beyond %d bytes of a partition are deleted", want)
	}
	return ""
}

// apply does what one difference asks for.
func (d *Difference) apply(ctx context.Context, admin *kadm.Client) error {
	switch d.Action {
	case Change:
		altered, err := admin.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: d.Setting, Value: &d.Want}}, d.Topic)
		if err == nil && len(altered) > 0 {
			err = altered[0].Err
		}
		if err != nil {
			return fmt.Errorf("topic %s: set %s: %w", d.Topic, d.Setting, notAllowed(err, "alter its configuration"))
		}
		d.Done = true
	case Extend:
		n, err := strconv.Atoi(d.Want)
		if err != nil {
			return err
		}
		updated, err := admin.UpdatePartitions(ctx, n, d.Topic)
		if err == nil {
			err = updated.Error()
		}
		if err != nil && !errors.Is(err, kerr.InvalidPartitions) { // that many already: another was faster
			return fmt.Errorf("topic %s: add partitions: %w", d.Topic, notAllowed(err, "alter it"))
		}
		d.Done = true
	case Create, Leave: // done before, and not at all
	}
	return nil
}

// notAllowed adds what right is missing to an error that says that one is.
func notAllowed(err error, deed string) error {
	if errors.Is(err, kerr.TopicAuthorizationFailed) || errors.Is(err, kerr.ClusterAuthorizationFailed) {
		return fmt.Errorf("this user may not %s: %w", deed, err)
	}
	return err
}
