package embedded

import (
	"encoding/binary"
	"errors"
	"fmt"
	"pizzaflow/kafka"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

var (
	errNotKafka   = errors.New("not a request of the Kafka protocol")
	errNotOffered = errors.New("a kind or version of request that this broker does not offer")
)

// requestHead is what each request begins with: its size, kind, version and a number for the answer.
const requestHead = 12

// A rule is what the embedded broker offers of one kind of request.
type rule struct {
	max   int16 // the highest version offered
	limit int   // bytes of a request
	// check looks at a request and may change it. A response is the answer to one that the broker is not to see,
	// an error ends the connection. Nil lets everything through that has the right shape.
	check func(d *door, r kmsg.Request) (kmsg.Response, error)
}

// rules are all that is offered: the broker dies of what it does not expect, so each kind here was read for that, and
// what it does only in part is left out. Its clients then do it another way, or say that it cannot be done.
var rules = func() map[int16]rule {
	out := make(map[int16]rule)
	for kind, check := range map[kmsg.Key]func(*door, kmsg.Request) (kmsg.Response, error){
		kmsg.Fetch: checkFetch, kmsg.ListOffsets: nil, kmsg.Metadata: nil, kmsg.OffsetForLeaderEpoch: nil,
		kmsg.OffsetCommit: checkOffsetCommit, kmsg.OffsetFetch: nil, kmsg.OffsetDelete: nil,
		kmsg.FindCoordinator: checkFindCoordinator, kmsg.JoinGroup: checkJoinGroup, kmsg.Heartbeat: nil, kmsg.LeaveGroup: nil, kmsg.SyncGroup: nil,
		kmsg.DescribeGroups: nil, kmsg.ListGroups: checkListGroups, kmsg.DeleteGroups: nil,
		kmsg.ConsumerGroupHeartbeat: checkConsumerGroupHeartbeat, kmsg.ConsumerGroupDescribe: nil,
		kmsg.ApiVersions: nil, kmsg.SASLHandshake: refuseSASL, kmsg.DescribeCluster: nil, kmsg.DescribeLogDirs: nil,
		kmsg.DeleteTopics: nil, kmsg.DeleteRecords: nil, kmsg.CreatePartitions: checkCreatePartitions,
		kmsg.ListPartitionReassignments: nil, kmsg.ListConfigResources: nil,
		kmsg.DescribeConfigs: nil, kmsg.AlterConfigs: checkAlterConfigs, kmsg.IncrementalAlterConfigs: checkIncrementalAlterConfigs,
		kmsg.InitProducerID: nil, kmsg.AddOffsetsToTxn: checkTransaction, kmsg.EndTxn: checkTransaction, kmsg.TxnOffsetCommit: checkTransaction,
	} {
		out[int16(kind)] = rule{max: kmsg.RequestForKey(int16(kind)).MaxVersion(), limit: maxControl, check: check}
	}
	out[int16(kmsg.Produce)] = rule{max: 13, limit: kafka.MaxRequest, check: checkProduce}
	// From version 5 on the answer tells settings, and Java's client does not understand how.
	out[int16(kmsg.CreateTopics)] = rule{max: 4, limit: maxControl, check: checkCreateTopics}
	// From version 4 on it is for brokers, about several producers.
	out[int16(kmsg.AddPartitionsToTxn)] = rule{max: 3, limit: maxControl, check: checkTransaction}
	return out
}()

// offered returns the rules as the broker wants to hear them; it knows the lowest versions itself.
func offered() *kversion.Versions {
	v := kversion.Stable()
	v.EachMaxKeyVersion(func(kind, _ int16) {
		if _, ok := rules[kind]; !ok {
			v.SetMaxKeyVersion(kind, -1)
		}
	})
	for kind, r := range rules {
		v.SetMaxKeyVersion(kind, r.max)
	}
	return v
}

// door looks at each request before the embedded broker sees it, and lets through what it can do without harm. The
// broker handles requests in goroutines of its own, where nobody can catch what one of them causes.
type door struct {
	groups *groupBook
	// partitions counts those of all topics, as they are on disk.
	partitions func() (int, error)
	// strangers are the connections of other processes that there are now.
	strangers atomic.Int32
	unpacking sync.Mutex // held while a batch of a stranger is unpacked
}

// A passage is what becomes of a request.
type passage struct {
	requests [][]byte // for the broker, one after the other: several have one answer together; none when it is not to see it
	answer   []byte   // for the client, when the broker does not see its request
	silent   bool     // the broker will not answer
}

// admit decides about the request in frame, size and all. trusted is one of this process. An error ends the connection.
func (d *door) admit(frame []byte, trusted bool) (p passage, err error) {
	defer func() {
		if reason := recover(); reason != nil {
			err = fmt.Errorf("a request that cannot be understood: %v", reason)
		}
	}()
	r, head, err := parse(frame)
	if err != nil {
		return passage{}, err
	}
	p.requests = [][]byte{frame}
	produce, isProduce := r.(*kmsg.ProduceRequest)
	if isProduce {
		p.silent, p.requests = produce.Acks == 0, splitProduce(frame, head, produce)
	}
	if fetch, isFetch := r.(*kmsg.FetchRequest); isFetch && !trusted {
		d.share(fetch)
	}
	check := rules[r.Key()].check
	if check == nil || isProduce && trusted {
		return p, nil
	}
	answer, err := check(d, r)
	switch {
	case err != nil:
		return passage{}, err
	case answer != nil:
		return passage{answer: encodeAnswer(frame, answer)}, nil
	}
	if !isProduce { // that was not changed, and is large
		p.requests[0] = encodeRequest(frame, head, r)
	}
	return p, nil
}

// encodeRequest puts r behind the head of the request in frame.
func encodeRequest(frame []byte, head int, r kmsg.Request) []byte {
	out := r.AppendTo(frame[:head:head])
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	return out
}

// parse returns the request in frame, and where its body begins.
func parse(frame []byte) (r kmsg.Request, head int, err error) {
	if len(frame) < requestHead {
		return nil, 0, errNotKafka
	}
	kind, version := kindOf(frame)
	rule, ok := rules[kind]
	if !ok || version < 0 {
		return nil, 0, errNotOffered
	}
	r = kmsg.RequestForKey(kind)
	r.SetVersion(version)
	m := measure{rest: frame[requestHead:]}
	if err := m.pass(shape{kind: text}); err != nil { // the client's id, never as a varint
		return nil, 0, err
	}
	m.flexible = r.IsFlexible()
	if err := m.passTags(false); err != nil {
		return nil, 0, err
	}
	head = len(frame) - len(m.rest)
	if version > rule.max {
		if kind != int16(kmsg.ApiVersions) {
			return nil, 0, errNotOffered
		}
		return r, head, nil // answered with what is offered
	}
	if err := shapeOf(kind, version).fits(m.rest, m.flexible); err != nil {
		return nil, 0, fmt.Errorf("%s, version %d: %w", kmsg.NameForKey(kind), version, err)
	}
	if err := r.ReadFrom(m.rest); err != nil {
		return nil, 0, fmt.Errorf("%s, version %d: %w", kmsg.NameForKey(kind), version, err)
	}
	return r, head, nil
}

// kindOf returns kind and version of the request in frame.
func kindOf(frame []byte) (kind, version int16) {
	return int16(binary.BigEndian.Uint16(frame[4:])), int16(binary.BigEndian.Uint16(frame[6:]))
}

// encodeAnswer makes r the answer to the request in frame.
func encodeAnswer(frame []byte, r kmsg.Response) []byte {
	out := append(make([]byte, 4), frame[8:requestHead]...)
	if r.IsFlexible() && r.Key() != int16(kmsg.ApiVersions) {
		out = append(out, 0) // no optional fields
	}
	out = r.AppendTo(out)
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	return out
}
