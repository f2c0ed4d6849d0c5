package embedded

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"pizzaflow/kafka"

	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

var (
	errNotKafka   = errors.New("not a request of the Kafka protocol")
	errNotOffered = errors.New("a kind or version of request that this broker does not offer")
)

// requestHead is the length of a request's header: size, kind, version and correlation id.
const requestHead = 12

// A rule says which requests of a kind the embedded broker accepts.
type rule struct {
	max   int16 // the highest version offered
	limit int   // bytes of a request
	// check may change a request before the broker gets it. If it returns a response, the client gets that and the
	// broker does not get the request; an error closes the connection. A nil check accepts every request that has the
	// right layout.
	check func(f *filter, r kmsg.Request) (kmsg.Response, error)
}

// rules are the kinds of requests that the embedded broker offers. The broker panics at requests that it does not
// expect, so its code was read for each kind here, and kinds that it implements only in part are left out: clients then
// use another kind, or say that it cannot be done.
var rules = func() map[int16]rule {
	out := make(map[int16]rule)
	for kind, check := range map[kmsg.Key]func(*filter, kmsg.Request) (kmsg.Response, error){
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
	// From version 5 on the answer contains settings, in a way that Java's client does not understand.
	out[int16(kmsg.CreateTopics)] = rule{max: 4, limit: maxControl, check: checkCreateTopics}
	// From version 4 on it is for brokers, and about several producers.
	out[int16(kmsg.AddPartitionsToTxn)] = rule{max: 3, limit: maxControl, check: checkTransaction}
	return out
}()

// offered returns the highest versions for the broker; it knows the lowest ones itself.
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

// A filter sees each request before the embedded broker, and lets only those through that cannot harm it. The broker
// handles requests in goroutines of its own, where nobody can recover from a panic.
type filter struct {
	groups *groupRegistry
	// partitions is the number of partitions of all topics on disk.
	partitions func() (int, error)
	untrusted  atomic.Int32 // how many connections of other processes there are
	unpacking  sync.Mutex   // held while a batch of an untrusted client is unpacked
}

// A decision says what to do with a request.
type decision struct {
	requests   [][]byte // for the broker, one after the other, whose answers are joined to one; none if there is an answer
	answer     []byte   // for the client, in place of the broker's
	noResponse bool     // the broker sends no response
}

// decide returns what to do with the request in frame, which includes its size. trusted is for clients of this process.
// After an error the connection is closed.
func (f *filter) decide(frame []byte, trusted bool) (d decision, err error) {
	defer func() {
		if reason := recover(); reason != nil {
			err = fmt.Errorf("a request that cannot be decoded: %v", reason)
		}
	}()
	r, head, err := parse(frame)
	if err != nil {
		return decision{}, err
	}
	d.requests = [][]byte{frame}
	produce, isProduce := r.(*kmsg.ProduceRequest)
	if isProduce {
		d.noResponse, d.requests = produce.Acks == 0, splitProduce(frame, head, produce)
	}
	if fetch, isFetch := r.(*kmsg.FetchRequest); isFetch && !trusted {
		f.limitFetch(fetch)
	}
	check := rules[r.Key()].check
	if check == nil || isProduce && trusted {
		return d, nil
	}
	answer, err := check(f, r)
	switch {
	case err != nil:
		return decision{}, err
	case answer != nil:
		return decision{answer: encodeAnswer(frame, answer)}, nil
	}
	if !isProduce { // no check changes a produce request, which may be large
		d.requests[0] = encodeRequest(frame, head, r)
	}
	return d, nil
}

// encodeRequest returns the header of the request in frame with r as the body.
func encodeRequest(frame []byte, head int, r kmsg.Request) []byte {
	out := r.AppendTo(frame[:head:head])
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	return out
}

// parse returns the request in frame, and the length of its header.
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
	w := walker{rest: frame[requestHead:]}
	if err := w.walk(layout{kind: text}); err != nil { // the client's id, whose length is never a varint
		return nil, 0, err
	}
	w.flexible = r.IsFlexible()
	if err := w.walkTags(false); err != nil {
		return nil, 0, err
	}
	head = len(frame) - len(w.rest)
	if version > rule.max {
		if kind != int16(kmsg.ApiVersions) {
			return nil, 0, errNotOffered
		}
		return r, head, nil // the broker answers with the versions that it offers
	}
	if err := layoutOf(kind, version).check(w.rest, w.flexible); err != nil {
		return nil, 0, fmt.Errorf("%s, version %d: %w", kmsg.NameForKey(kind), version, err)
	}
	if err := r.ReadFrom(w.rest); err != nil {
		return nil, 0, fmt.Errorf("%s, version %d: %w", kmsg.NameForKey(kind), version, err)
	}
	return r, head, nil
}

// kindOf returns kind and version of the request in frame.
func kindOf(frame []byte) (kind, version int16) {
	return int16(binary.BigEndian.Uint16(frame[4:])), int16(binary.BigEndian.Uint16(frame[6:]))
}

// encodeAnswer returns r as the answer to the request in frame.
func encodeAnswer(frame []byte, r kmsg.Response) []byte {
	out := append(make([]byte, 4), frame[8:requestHead]...)
	if r.IsFlexible() && r.Key() != int16(kmsg.ApiVersions) {
		out = append(out, 0) // no optional fields
	}
	out = r.AppendTo(out)
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	return out
}
