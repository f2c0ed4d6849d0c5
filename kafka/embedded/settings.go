package embedded

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"

	"pizzaflow/kafka"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// MaxPartitions is how many partitions a topic of the embedded broker may have: each is a folder and two open files.
	MaxPartitions = 128

	maxAllPartitions = 4096 // of all topics together
)

// topicName matches the names that Apache Kafka allows, but for "." and "..", which it does not.
var topicName = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)

// The settings that a topic and a group of the embedded broker may have, with their allowed values. The broker itself
// accepts any value and takes one that it cannot parse for zero, which would be a retention of nothing.
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

// checkSetting returns an error if a resource may not have that value of a setting; nil means the broker's default.
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
		return fmt.Errorf("%s: the embedded broker allows only %v", name, words)
	}
	if n, err := strconv.ParseInt(*value, 10, 64); err != nil || n < limit.least || n > limit.most {
		return fmt.Errorf("%s: %s is no number from %d to %d", name, *value, limit.least, limit.most)
	}
	return nil
}

// A refusal is an error of the protocol.
type refusal struct {
	code   *kerr.Error
	reason string
}

// checkCreateTopics refuses names, numbers and settings that Apache Kafka would refuse, and more partitions than there
// may be. When one topic of a request is refused, none of them is created.
func checkCreateTopics(f *filter, r kmsg.Request) (kmsg.Response, error) {
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
	if full := f.checkRoom(wanted); !refusing && full != nil && len(refused) > 0 {
		refused[0], refusing = full, true
	}
	if !refusing {
		return nil, nil
	}
	resp := req.ResponseKind().(*kmsg.CreateTopicsResponse)
	for i, t := range req.Topics {
		why := orOtherRefused(refused[i])
		st := kmsg.NewCreateTopicsResponseTopic()
		st.Topic, st.ErrorCode, st.ErrorMessage = t.Topic, why.code.Code, &why.reason
		st.NumPartitions, st.ReplicationFactor = -1, -1
		resp.Topics = append(resp.Topics, st)
	}
	return resp, nil
}

// defaultPartitions is the number of partitions of a topic that is created without one.
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

// checkRoom returns a refusal if there may not be that many more partitions.
func (f *filter) checkRoom(wanted int) *refusal {
	if n, err := f.partitions(); err != nil || n+wanted > maxAllPartitions {
		return &refusal{kerr.PolicyViolation, fmt.Sprintf("all topics of the embedded broker have at most %d partitions together", maxAllPartitions)}
	}
	return nil
}

// orOtherRefused returns r, or the refusal of an item that is fine but for another one in the request.
func orOtherRefused(r *refusal) *refusal {
	if r != nil {
		return r
	}
	return &refusal{kerr.InvalidRequest, "another in this request is refused"}
}

func checkCreatePartitions(f *filter, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.CreatePartitionsRequest)
	resp := req.ResponseKind().(*kmsg.CreatePartitionsResponse)
	wanted, refusing := 0, false
	for _, t := range req.Topics {
		why := orOtherRefused(nil)
		if wanted += max(int(t.Count), 0); t.Count > MaxPartitions {
			why, refusing = &refusal{kerr.InvalidPartitions, fmt.Sprintf("a topic of the embedded broker has 1 to %d partitions", MaxPartitions)}, true
		}
		st := kmsg.NewCreatePartitionsResponseTopic()
		st.Topic, st.ErrorCode, st.ErrorMessage = t.Topic, why.code.Code, &why.reason
		resp.Topics = append(resp.Topics, st)
	}
	if full := f.checkRoom(wanted); !refusing && full != nil && len(req.Topics) > 0 {
		resp.Topics[0].ErrorCode, resp.Topics[0].ErrorMessage, refusing = full.code.Code, &full.reason, true
	}
	if !refusing {
		return nil, nil
	}
	return resp, nil
}

func checkAlterConfigs(_ *filter, r kmsg.Request) (kmsg.Response, error) {
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
		why := refusalOfSetting(reason)
		st := kmsg.NewAlterConfigsResponseResource()
		st.ResourceType, st.ResourceName, st.ErrorCode, st.ErrorMessage = res.ResourceType, res.ResourceName, why.code.Code, &why.reason
		resp.Resources = append(resp.Resources, st)
	}
	if !refusing {
		return nil, nil
	}
	return resp, nil
}

func checkIncrementalAlterConfigs(_ *filter, r kmsg.Request) (kmsg.Response, error) {
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
		why := refusalOfSetting(reason)
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
	return fmt.Errorf("%s: the embedded broker has no lists: a value can only be set or deleted", c.Name)
}

func refusalOfSetting(reason error) *refusal {
	if reason == nil {
		return orOtherRefused(nil)
	}
	return &refusal{kerr.InvalidConfig, reason.Error()}
}
