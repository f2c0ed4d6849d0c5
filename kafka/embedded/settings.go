package embedded

import (
	"fmt"
	"math"
	"pizzaflow/kafka"
	"regexp"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// MaxPartitions is the most that a topic of the embedded broker may have: each partition is a folder and two open
	// files.
	MaxPartitions = 128

	maxAllPartitions = 4096 // of all topics together
)

// topicName is what a topic may be called, as with Apache Kafka; "." and ".." are none.
var topicName = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)

// limits are the settings that a topic of the embedded broker may have, and those of a group, with the numbers allowed.
// It takes whatever it is told, and what it cannot read is a zero to it: a retention of nothing.
var (
	topicLimits = map[string]struct{ least, most int64 }{
		"delete.retention.ms": {0, math.MaxInt64},
		"max.message.bytes":   {1 << 10, kafka.MaxRequest - 64<<10},
		"min.insync.replicas": {1, math.MaxInt32},
		"retention.bytes":     {-1, math.MaxInt64},
		"retention.ms":        {-1, math.MaxInt64},
		"segment.bytes":       {1 << 20, math.MaxInt32},
		"segment.ms":          {1, math.MaxInt64},
	}
	topicWords = map[string][]string{
		"cleanup.policy":         {"delete"}, // compaction is not offered
		"compression.type":       {"producer"},
		"message.timestamp.type": {"CreateTime"},
	}
	groupLimits = map[string]struct{ least, most int64 }{
		"consumer.heartbeat.interval.ms": {5_000, 15_000},
		"consumer.session.timeout.ms":    {45_000, 60_000},
	}
)

// checkSetting reports why a resource may not have a setting; a nil value leaves it to the broker.
func checkSetting(resource kmsg.ConfigResourceType, name string, value *string) error {
	limits := topicLimits
	switch resource {
	case kmsg.ConfigResourceTypeTopic:
	case kmsg.ConfigResourceTypeGroupConfig:
		limits = groupLimits
	default:
		return fmt.Errorf("the embedded broker has no settings of %s", resource)
	}
	limit, isNumber := limits[name]
	words, isWord := topicWords[name]
	if isWord = isWord && resource == kmsg.ConfigResourceTypeTopic; !isNumber && !isWord {
		return fmt.Errorf("the embedded broker has no setting %s", name)
	}
	if value == nil {
		return nil
	}
	if isWord {
		if slices.Contains(words, *value) {
			return nil
		}
		return fmt.Errorf("%s: the embedded broker can only %v", name, words)
	}
	if n, err := strconv.ParseInt(*value, 10, 64); err != nil || n < limit.least || n > limit.most {
		return fmt.Errorf("%s: %s is no number from %d to %d", name, *value, limit.least, limit.most)
	}
	return nil
}

// A refusal is why something is not done, as the protocol says it.
type refusal struct {
	code   *kerr.Error
	reason string
}

// checkCreateTopics refuses names, numbers and settings that Apache Kafka would refuse, and more than there is room for.
// When one of a request's topics is refused, none of them is made.
func checkCreateTopics(d *door, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.CreateTopicsRequest)
	wanted := 0
	refused := make([]*refusal, len(req.Topics))
	refusing := false
	for i := range req.Topics {
		n := max(int(req.Topics[i].NumPartitions), len(req.Topics[i].ReplicaAssignment))
		wanted += max(n, defaultPartitions)
		refused[i] = checkTopic(&req.Topics[i])
		refusing = refusing || refused[i] != nil
	}
	if full := d.room(wanted); !refusing && full != nil && len(refused) > 0 {
		refused[0], refusing = full, true
	}
	if !refusing {
		return nil, nil
	}
	resp := req.ResponseKind().(*kmsg.CreateTopicsResponse)
	for i, t := range req.Topics {
		why := orAside(refused[i])
		st := kmsg.NewCreateTopicsResponseTopic()
		st.Topic, st.ErrorCode, st.ErrorMessage = t.Topic, why.code.Code, &why.reason
		st.NumPartitions, st.ReplicationFactor = -1, -1
		resp.Topics = append(resp.Topics, st)
	}
	return resp, nil
}

// defaultPartitions are those of a topic whose maker leaves the number to the broker.
const defaultPartitions = 10

func checkTopic(t *kmsg.CreateTopicsRequestTopic) *refusal {
	switch n := int(t.NumPartitions); {
	case !topicName.MatchString(t.Topic) || t.Topic == "." || t.Topic == "..":
		return &refusal{kerr.InvalidTopicException, "a name has 1 to 249 of the characters a-z, A-Z, 0-9, '.', '_' and '-'"}
	case n < -1 || n > MaxPartitions || len(t.ReplicaAssignment) > MaxPartitions || n == 0 && len(t.ReplicaAssignment) == 0:
		return &refusal{kerr.InvalidPartitions, fmt.Sprintf("a topic of the embedded broker has 1 to %d partitions", MaxPartitions)}
	case t.ReplicationFactor != 1 && t.ReplicationFactor != -1:
		return &refusal{kerr.InvalidReplicationFactor, "the embedded broker is one, and keeps one copy"}
	}
	for _, a := range t.ReplicaAssignment {
		if len(a.Replicas) != 1 || a.Replicas[0] != 0 {
			return &refusal{kerr.InvalidReplicaAssignment, "the embedded broker is one, and its number is 0"}
		}
	}
	for _, c := range t.Configs {
		if err := checkSetting(kmsg.ConfigResourceTypeTopic, c.Name, c.Value); err != nil {
			return &refusal{kerr.InvalidConfig, err.Error()}
		}
	}
	return nil
}

// room returns why so many more partitions cannot be made.
func (d *door) room(wanted int) *refusal {
	if n, err := d.partitions(); err != nil || n+wanted > maxAllPartitions {
		return &refusal{kerr.PolicyViolation, fmt.Sprintf("all topics of the embedded broker have at most %d partitions together", maxAllPartitions)}
	}
	return nil
}

// orAside is what is told of one that could have been done, but for the others in the request.
func orAside(r *refusal) *refusal {
	if r != nil {
		return r
	}
	return &refusal{kerr.InvalidRequest, "another in this request is refused"}
}

func checkCreatePartitions(d *door, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.CreatePartitionsRequest)
	resp := req.ResponseKind().(*kmsg.CreatePartitionsResponse)
	wanted, refusing := 0, false
	for _, t := range req.Topics {
		why := orAside(nil)
		if wanted += max(int(t.Count), 0); t.Count > MaxPartitions {
			why, refusing = &refusal{kerr.InvalidPartitions, fmt.Sprintf("a topic of the embedded broker has 1 to %d partitions", MaxPartitions)}, true
		}
		st := kmsg.NewCreatePartitionsResponseTopic()
		st.Topic, st.ErrorCode, st.ErrorMessage = t.Topic, why.code.Code, &why.reason
		resp.Topics = append(resp.Topics, st)
	}
	if full := d.room(wanted); !refusing && full != nil && len(req.Topics) > 0 {
		resp.Topics[0].ErrorCode, resp.Topics[0].ErrorMessage, refusing = full.code.Code, &full.reason, true
	}
	if !refusing {
		return nil, nil
	}
	return resp, nil
}

func checkAlterConfigs(_ *door, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.AlterConfigsRequest)
	resp := req.ResponseKind().(*kmsg.AlterConfigsResponse)
	refusing := false
	for _, res := range req.Resources {
		var reason error
		if res.ResourceType != kmsg.ConfigResourceTypeTopic {
			reason = checkSetting(0, "", nil)
		}
		for _, c := range res.Configs {
			if err := checkSetting(res.ResourceType, c.Name, c.Value); err != nil {
				reason = err
			}
		}
		refusing = refusing || reason != nil
		why := settingRefused(reason)
		st := kmsg.NewAlterConfigsResponseResource()
		st.ResourceType, st.ResourceName, st.ErrorCode, st.ErrorMessage = res.ResourceType, res.ResourceName, why.code.Code, &why.reason
		resp.Resources = append(resp.Resources, st)
	}
	if !refusing {
		return nil, nil
	}
	return resp, nil
}

func checkIncrementalAlterConfigs(_ *door, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.IncrementalAlterConfigsRequest)
	resp := req.ResponseKind().(*kmsg.IncrementalAlterConfigsResponse)
	refusing := false
	for _, res := range req.Resources {
		var reason error
		for _, c := range res.Configs {
			if err := checkChange(res.ResourceType, c); err != nil {
				reason = err
			}
		}
		refusing = refusing || reason != nil
		why := settingRefused(reason)
		st := kmsg.NewIncrementalAlterConfigsResponseResource()
		st.ResourceType, st.ResourceName, st.ErrorCode, st.ErrorMessage = res.ResourceType, res.ResourceName, why.code.Code, &why.reason
		resp.Resources = append(resp.Resources, st)
	}
	if !refusing {
		return nil, nil
	}
	return resp, nil
}

func checkChange(resource kmsg.ConfigResourceType, c kmsg.IncrementalAlterConfigsRequestResourceConfig) error {
	switch {
	case c.Op == kmsg.IncrementalAlterConfigOpDelete:
		return checkSetting(resource, c.Name, nil)
	case c.Op == kmsg.IncrementalAlterConfigOpSet && c.Value != nil:
		return checkSetting(resource, c.Name, c.Value)
	}
	return fmt.Errorf("%s: the embedded broker has no lists, and a value is set or deleted", c.Name)
}

func settingRefused(reason error) *refusal {
	if reason == nil {
		return orAside(nil)
	}
	return &refusal{kerr.InvalidConfig, reason.Error()}
}
