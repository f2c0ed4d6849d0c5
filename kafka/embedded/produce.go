package embedded

import (
	"encoding/binary"
	"errors"

	"pizzaflow/kafka"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// producedByID is the first version that names topics by their ids. A topic that was created anew has another id, so
// that no record for the old topic gets into it.
const producedByID = 13

// maxUnpacked limits the bytes that all batches of a request may unpack to, and so the time that it takes to check them.
const maxUnpacked = 4 * kafka.MaxBatch

// A topicPartition is a partition of a topic, which is named or has an id.
type topicPartition struct {
	topic     string
	id        [16]byte
	partition int32
}

// checkProduce refuses batches that could not be read again, and two batches for one partition: the response has room
// for one result.
func checkProduce(f *filter, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.ProduceRequest)
	seen, room := make(map[topicPartition]bool), maxUnpacked
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			at := topicPartition{t.Topic, t.TopicID, p.Partition}
			if seen[at] {
				return nil, errors.New("two batches for one partition")
			}
			seen[at] = true
			var err error
			if room, err = f.checkBatch(p.Records, room); err != nil {
				return refuseProduce(req, err)
			}
		}
	}
	return nil, nil
}

// checkBatch calls checkBatch for one batch at a time: two kilobytes may unpack to kafka.MaxBatch, and hundreds of
// connections may send such a batch at once.
func (f *filter) checkBatch(b []byte, room int) (left int, err error) {
	f.unpacking.Lock()
	defer f.unpacking.Unlock()
	return checkBatch(b, room)
}

// refuseProduce answers that no batch of the request was taken.
func refuseProduce(req *kmsg.ProduceRequest, reason error) (kmsg.Response, error) {
	if req.Acks == 0 {
		return nil, reason // as Apache Kafka does: a client without responses learns it when the connection is closed
	}
	resp := req.ResponseKind().(*kmsg.ProduceResponse)
	for _, t := range req.Topics {
		st := kmsg.NewProduceResponseTopic()
		st.Topic, st.TopicID = t.Topic, t.TopicID
		for _, p := range t.Partitions {
			sp := kmsg.NewProduceResponseTopicPartition()
			sp.Partition, sp.BaseOffset, sp.ErrorCode, sp.ErrorMessage = p.Partition, -1, kerr.InvalidRecord.Code, new(reason.Error())
			st.Partitions = append(st.Partitions, sp)
		}
		resp.Topics = append(resp.Topics, st)
	}
	return resp, nil
}

// splitProduce returns a request for each topic, if topics have ids: the broker takes all unknown ids of a request for one
// topic, and panics when it responds.
func splitProduce(frame []byte, head int, req *kmsg.ProduceRequest) [][]byte {
	if req.Version < producedByID || len(req.Topics) < 2 {
		return [][]byte{frame}
	}
	part := *req
	var out [][]byte
	for i := range req.Topics {
		part.Topics = req.Topics[i : i+1]
		out = append(out, encodeRequest(frame, head, &part))
	}
	return out
}

// joinProduce makes one response of the responses to the requests of splitProduce.
func joinProduce(answers [][]byte) ([]byte, error) {
	const head = 4 + 4 + 1 // size, correlation id, and no optional fields
	whole := kmsg.NewPtrProduceResponse()
	whole.SetVersion(producedByID)
	for _, a := range answers {
		part := kmsg.NewPtrProduceResponse()
		part.SetVersion(producedByID)
		if len(a) < head {
			return nil, errNoAnswer
		}
		if err := part.ReadFrom(a[head:]); err != nil {
			return nil, err
		}
		whole.Topics, whole.Brokers = append(whole.Topics, part.Topics...), part.Brokers
	}
	out := whole.AppendTo(answers[0][:head:head])
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	return out, nil
}
