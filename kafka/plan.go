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

	"pizzaflow/internal/retry"
)

// An Action says what ApplyTopics does about a Difference.
type Action string

// The actions.
const (
	Create Action = "create" // create the missing topic
	Change Action = "change" // change a setting of the topic
	Extend Action = "extend" // add partitions, as was allowed
	Leave  Action = "leave"  // leave it as it is, for the reason in Why
)

// A Difference is one way in which a topic is not as it should be.
type Difference struct {
	Topic   string `json:"topic"`
	Setting string `json:"setting"` // "topic", "partitions", "replication.factor", or the broker's name of a setting
	Is      string `json:"is"`      // "" when the topic is missing
	Want    string `json:"want"`
	Action  Action `json:"action"`
	Why     string `json:"why,omitempty"`
	Done    bool   `json:"done"` // ApplyTopics did it
}

// planTimeout limits a call for PlanTopics and the like, for which a person waits.
const planTimeout = 20 * time.Second

// PlanTopics returns in what the brokers' topics differ from those wanted, and changes nothing. A setting that is
// left to the broker differs in nothing. Partitions are added only where repartition allows it, because the records of
// a key may then go to another partition, where consumers may read them before earlier ones. The error is that of a
// Config or Topic that is not valid, of brokers that do not answer within 20 s, or of a right that this user has not.
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

// ApplyTopics does what PlanTopics returns, and returns the plan with each Difference marked that is done, beside an
// error, too. It returns when the changes are visible at the brokers. It may be repeated, and called by several
// processes at once.
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

// awaitApplied waits until no Difference that is done is seen any more: the controller answers before the brokers
// have the change.
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
		if !retry.Sleep(ctx, firstPause) {
			return fmt.Errorf("the change is not visible yet: %w", ctx.Err())
		}
	}
}

// createPlanned creates the missing topics of the plan and waits for their leaders.
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

// administer runs fn with a client that gives up soon when no broker answers.
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
	if _, err := kadm.NewClient(client).BrokerMetadata(ctx); err != nil { // not Ping, whose tries share one request
		return noAnswer(strings.Join(c.Brokers, ","), err)
	}
	return fn(ctx, kadm.NewClient(client))
}

func differences(ctx context.Context, admin *kadm.Client, repartition bool, topics []Topic) ([]Difference, error) {
	var plan []Difference
	states, err := readStates(ctx, admin, namesOf(topics))
	if err != nil {
		return nil, err
	}
	for i, t := range topics {
		if err := t.validate(); err != nil {
			return nil, err
		}
		if states[i].Missing {
			plan = append(plan, Difference{Topic: t.Name, Setting: "topic", Want: t.describe(), Action: Create})
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

// describe is the topic in words, for one that is missing.
func (t Topic) describe() string {
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

// differences compares t with the topic as it is.
func (t Topic) differences(actual TopicState, repartition bool) []Difference {
	var out []Difference
	compare := func(setting, is, want string, action Action, why string) {
		if is != want {
			out = append(out, Difference{Topic: t.Name, Setting: setting, Is: is, Want: want, Action: action, Why: why})
		}
	}
	action, why := Leave, "Kafka never takes partitions away"
	switch n := len(actual.Partitions); {
	case n < t.Partitions && repartition:
		action, why = Extend, "keys may fall to other partitions: their order across the change is lost"
	case n < t.Partitions:
		why = "keys may fall to other partitions, and their order would be lost: drain the topic and allow it with --allow-repartition"
	}
	compare("partitions", strconv.Itoa(len(actual.Partitions)), strconv.Itoa(t.Partitions), action, why)
	if t.Replicas > 0 {
		compare("replication.factor", strconv.Itoa(actual.ReplicationFactor), strconv.Itoa(t.Replicas), Leave,
			"replicas are moved with Kafka's own kafka-reassign-partitions")
	}
	for _, s := range t.settings() {
		action, why := Change, t.describeLoss(s, actual.Settings[s.name])
		if s.name == "min.insync.replicas" {
			action, why = planMinInsync(s.value, actual.ReplicationFactor)
		}
		compare(s.name, actual.Settings[s.name], s.value, action, why)
	}
	return out
}

// planMinInsync returns what to do about min.insync.replicas with that number of replicas, and why: too high a value
// stops all writing.
func planMinInsync(want string, replicas int) (Action, string) {
	least, _ := strconv.Atoi(want) // settings made a number of it
	switch {
	case least > replicas:
		return Leave, fmt.Sprintf("that is more than the %d replicas there are, and older brokers would take no records: add replicas first", replicas)
	case least == replicas && replicas > 1:
		return Change, "while one broker is away nothing can be written"
	}
	return Change, ""
}

// describeLoss says which records are deleted by a setting that was another before.
func (t Topic) describeLoss(s setting, is string) string {
	now, err := strconv.ParseInt(is, 10, 64)
	want, _ := strconv.ParseInt(s.value, 10, 64) // settings made a number of it
	switch shorter := err == nil && (now < 0 || want < now); {
	case shorter && s.name == "retention.ms":
		return fmt.Sprintf("records older than %s are deleted", t.Retention)
	case shorter && s.name == "retention.bytes":
		return fmt.Sprintf("records beyond %d bytes of a partition are deleted", want)
	}
	return ""
}

// apply does the action of a Difference, if that is not done.
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
		if err != nil && !errors.Is(err, kerr.InvalidPartitions) { // it has them already, by another process
			return fmt.Errorf("topic %s: add partitions: %w", d.Topic, notAllowed(err, "alter it"))
		}
		d.Done = true
	case Create, Leave: // createPlanned did it, and nothing to do
	}
	return nil
}

// notAllowed adds the operation to an error that says that the user has no right to it.
func notAllowed(err error, operation string) error {
	if errors.Is(err, kerr.TopicAuthorizationFailed) || errors.Is(err, kerr.ClusterAuthorizationFailed) {
		return fmt.Errorf("this user may not %s: %w", operation, err)
	}
	return err
}
