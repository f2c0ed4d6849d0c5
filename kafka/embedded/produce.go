package embedded

import (
	"encoding/binary"
	"errors"
	"pizzaflow/kafka"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// producedByID is the version from which on topics go by their ids. A topic that was created anew has another, so that
// no record meant for the old one gets into it.
const producedByID = 13

// maxUnpacked bounds what all batches of a request may unpack to, and so the time that it takes to look into them.
const maxUnpacked = 4 * kafka.MaxBatch

// topicPlace is a partition, of a topic known by name or by id.
type topicPlace struct {
	topic     string
	id        [16]byte
	partition int32
}

// checkProduce refuses what could not be read again, and two batches for one partition: the protocol has room for one
// answer.
func checkProduce(d *door, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.ProduceRequest)
	seen, room := make(map[topicPlace]bool), maxUnpacked
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			at := topicPlace{t.Topic, t.TopicID, p.Partition}
			if seen[at] {
				return nil, errors.New("two batches for one partition")
			}
			seen[at] = true
			var err error
			if room, err = d.checkBatch(p.Records, room); err != nil {
				return refuseProduce(req, err)
			}
		}
	}
	return nil, nil
}

// checkBatch is checkBatch, of one batch at a time: two kilobytes may unpack to kafka.MaxBatch, and are sent as easily by
// hundreds of connections at once.
func (d *door) checkBatch(b []byte, room int) (left int, err error) {
	d.unpacking.Lock()
	defer d.unpacking.Unlock()
	return checkBatch(b, room)
}

func refuseProduce(req *kmsg.ProduceRequest, reason error) (kmsg.Response, error) {
	if req.Acks == 0 {
		return nil, reason // as Apache Kafka: who wants no answer is told by the end of the connection
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

// splitProduce returns a request for each topic, where they go by id: in one request, ids that the broker does not know
// are one topic to it, and it dies when it answers.
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

// joinProduce makes one answer of those to the requests of splitProduce.
func joinProduce(answers [][]byte) ([]byte, error) {
	const head = 4 + 4 + 1 // size, number, and no optional fields
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
