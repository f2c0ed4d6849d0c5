package embedded

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	longestFetch = 30 * time.Second // for how long a fetch waits for records
	longestJoin  = 5 * time.Minute  // for how long a group waits for a member to join again
	fetchBytes   = 8 << 20          // of records in one answer, which may have one batch more

	offsetMetadata = 4 << 10 // bytes beside a committed offset, as Apache Kafka's offset.metadata.max.bytes
)

// checkFetch limits how long a fetch waits and how much it returns. It takes the session away, because the broker keeps
// every partition that a session has ever named.
func checkFetch(_ *filter, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.FetchRequest)
	req.MaxWaitMillis = min(req.MaxWaitMillis, int32(longestFetch.Milliseconds()))
	req.MaxBytes = min(req.MaxBytes, fetchBytes)
	req.SessionID, req.SessionEpoch, req.ForgottenTopics = 0, -1, nil
	return nil, nil
}

// limitFetch limits the answer to the fetch of an untrusted client to its share of maxUntrustedBytes: an answer that the
// client does not read stays in memory for answerLimit.
func (f *filter) limitFetch(req *kmsg.FetchRequest) {
	req.MaxBytes = min(req.MaxBytes, maxUntrustedBytes/max(1, f.untrusted.Load()))
}

// checkOffsetCommit refuses to commit a partition twice, large metadata, and a group that cannot be registered.
func checkOffsetCommit(f *filter, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.OffsetCommitRequest)
	refuse := func(e *kerr.Error) kmsg.Response {
		resp := req.ResponseKind().(*kmsg.OffsetCommitResponse)
		for _, t := range req.Topics {
			st := kmsg.NewOffsetCommitResponseTopic()
			st.Topic, st.TopicID = t.Topic, t.TopicID
			for _, p := range t.Partitions {
				sp := kmsg.NewOffsetCommitResponseTopicPartition()
				sp.Partition, sp.ErrorCode = p.Partition, e.Code
				st.Partitions = append(st.Partitions, sp)
			}
			resp.Topics = append(resp.Topics, st)
		}
		return resp
	}
	seen := make(map[topicPartition]bool)
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			at := topicPartition{t.Topic, t.TopicID, p.Partition}
			switch {
			case seen[at]: // the broker syncs each commit to disk before the next
				return refuse(kerr.InvalidRequest), nil
			case p.Metadata != nil && len(*p.Metadata) > offsetMetadata:
				return refuse(kerr.OffsetMetadataTooLarge), nil
			}
			seen[at] = true
		}
	}
	if !f.groups.register(req.Group, anyProtocol) {
		return refuse(kerr.PolicyViolation), nil
	}
	return nil, nil
}

// checkFindCoordinator refuses share groups, which are not offered.
func checkFindCoordinator(_ *filter, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.FindCoordinatorRequest)
	if req.CoordinatorType != 0 && req.CoordinatorType != 1 {
		return nil, errNotOffered
	}
	return nil, nil
}

// checkJoinGroup refuses a protocol that is named twice: the broker counts names to find a protocol of all members.
func checkJoinGroup(f *filter, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.JoinGroupRequest)
	resp := req.ResponseKind().(*kmsg.JoinGroupResponse)
	resp.MemberID, resp.Generation = req.MemberID, -1
	names := make(map[string]bool)
	for _, p := range req.Protocols {
		names[p.Name] = true
	}
	if len(names) == 0 || len(names) < len(req.Protocols) || req.ProtocolType == "" {
		resp.ErrorCode = kerr.InconsistentGroupProtocol.Code
		return resp, nil
	}
	if req.Group != "" && !f.groups.register(req.Group, classicProtocol) {
		resp.ErrorCode = kerr.InconsistentGroupProtocol.Code
		return resp, nil
	}
	req.RebalanceTimeoutMillis = min(req.RebalanceTimeoutMillis, int32(longestJoin.Milliseconds()))
	return nil, nil
}

// checkConsumerGroupHeartbeat refuses members of the consumer protocol in a classic group.
func checkConsumerGroupHeartbeat(f *filter, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.ConsumerGroupHeartbeatRequest)
	if req.Group != "" && !f.groups.register(req.Group, consumerProtocol) {
		resp := req.ResponseKind().(*kmsg.ConsumerGroupHeartbeatResponse)
		resp.ErrorCode = kerr.GroupIDNotFound.Code
		resp.ErrorMessage = new("the group is one of the classic protocol; delete it, or use another")
		return resp, nil
	}
	return nil, nil
}

// groupStates are the broker's names for the states of a group.
var groupStates = []string{"Empty", "Stable", "PreparingRebalance", "CompletingRebalance", "Dead", "Reconciling"}

// checkListGroups spells types and states as the broker does: Apache Kafka ignores the case.
func checkListGroups(_ *filter, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.ListGroupsRequest)
	for i, name := range req.TypesFilter {
		req.TypesFilter[i] = strings.ToLower(name)
	}
	for i, name := range req.StatesFilter {
		if at := slices.IndexFunc(groupStates, func(s string) bool { return strings.EqualFold(s, name) }); at >= 0 {
			req.StatesFilter[i] = groupStates[at]
		}
	}
	return nil, nil
}

// refuseSASL answers a client with SASL that the broker has no authentication.
func refuseSASL(_ *filter, r kmsg.Request) (kmsg.Response, error) {
	resp := r.ResponseKind().(*kmsg.SASLHandshakeResponse)
	resp.ErrorCode = kerr.IllegalSaslState.Code
	return resp, nil
}

// checkTransaction refuses an epoch after which the broker gives a producer another id: it would end the transaction
// under the new id, and wait for ever for the end of the transaction of the old one.
func checkTransaction(_ *filter, r kmsg.Request) (kmsg.Response, error) {
	var epoch int16
	switch req := r.(type) {
	case *kmsg.AddPartitionsToTxnRequest:
		epoch = req.ProducerEpoch
	case *kmsg.AddOffsetsToTxnRequest:
		epoch = req.ProducerEpoch
	case *kmsg.EndTxnRequest:
		epoch = req.ProducerEpoch
	case *kmsg.TxnOffsetCommitRequest:
		epoch = req.ProducerEpoch
	}
	if epoch > lastEpoch {
		return nil, errors.New("an epoch that no producer has")
	}
	return nil, nil
}
