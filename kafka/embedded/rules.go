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
	longestFetch = 30 * time.Second // that a fetch waits for records
	longestJoin  = 5 * time.Minute  // that a group waits for a member to join again
	fetchBytes   = 8 << 20          // of records in one answer, and one batch more

	offsetMetadata = 4 << 10 // bytes beside a committed offset, as Apache Kafka's offset.metadata.max.bytes
)

// checkFetch bounds how long a fetch waits and what it brings, and asks for no session: the broker remembers whatever
// partitions a session was ever told of.
func checkFetch(_ *door, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.FetchRequest)
	req.MaxWaitMillis = min(req.MaxWaitMillis, int32(longestFetch.Milliseconds()))
	req.MaxBytes = min(req.MaxBytes, fetchBytes)
	req.SessionID, req.SessionEpoch, req.ForgottenTopics = 0, -1, nil
	return nil, nil
}

// share bounds what a stranger's fetch brings by its part of what all of them may hold: an answer that nobody takes
// stays for as long as answerLimit.
func (d *door) share(req *kmsg.FetchRequest) {
	req.MaxBytes = min(req.MaxBytes, maxHeld/max(1, d.strangers.Load()))
}

func checkOffsetCommit(d *door, r kmsg.Request) (kmsg.Response, error) {
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
	seen := make(map[topicPlace]bool)
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			at := topicPlace{t.Topic, t.TopicID, p.Partition}
			switch {
			case seen[at]: // each is written to disk before the next is looked at
				return refuse(kerr.InvalidRequest), nil
			case p.Metadata != nil && len(*p.Metadata) > offsetMetadata:
				return refuse(kerr.OffsetMetadataTooLarge), nil
			}
			seen[at] = true
		}
	}
	if !d.groups.claim(req.Group, anyProtocol) {
		return refuse(kerr.PolicyViolation), nil
	}
	return nil, nil
}

// checkFindCoordinator knows no share groups.
func checkFindCoordinator(_ *door, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.FindCoordinatorRequest)
	if req.CoordinatorType != 0 && req.CoordinatorType != 1 {
		return nil, errNotOffered
	}
	return nil, nil
}

// checkJoinGroup wants each protocol once: the broker counts their names to find one that all members have.
func checkJoinGroup(d *door, r kmsg.Request) (kmsg.Response, error) {
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
	if req.Group != "" && !d.groups.claim(req.Group, classicProtocol) {
		resp.ErrorCode = kerr.InconsistentGroupProtocol.Code
		return resp, nil
	}
	req.RebalanceTimeoutMillis = min(req.RebalanceTimeoutMillis, int32(longestJoin.Milliseconds()))
	return nil, nil
}

func checkConsumerGroupHeartbeat(d *door, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.ConsumerGroupHeartbeatRequest)
	if req.Group != "" && !d.groups.claim(req.Group, consumerProtocol) {
		resp := req.ResponseKind().(*kmsg.ConsumerGroupHeartbeatResponse)
		resp.ErrorCode = kerr.GroupIDNotFound.Code
		resp.ErrorMessage = new("the group is one of the classic protocol; delete it, or use another")
		return resp, nil
	}
	return nil, nil
}

// groupStates are the names by which the broker knows the states of a group.
var groupStates = []string{"Empty", "Stable", "PreparingRebalance", "CompletingRebalance", "Dead", "Reconciling"}

// checkListGroups writes what is asked for as the broker does: Apache Kafka does not mind the case.
func checkListGroups(_ *door, r kmsg.Request) (kmsg.Response, error) {
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

// refuseSASL tells a client that is set to show a password that nobody wants one.
func refuseSASL(_ *door, r kmsg.Request) (kmsg.Response, error) {
	resp := r.ResponseKind().(*kmsg.SASLHandshakeResponse)
	resp.ErrorCode = kerr.IllegalSaslState.Code
	return resp, nil
}

// checkTransaction refuses an epoch at which a producer gets another id: the broker would end its transaction under that
// one, and wait for ever for the end of the one there is.
func checkTransaction(_ *door, r kmsg.Request) (kmsg.Response, error) {
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
