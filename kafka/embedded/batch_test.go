package embedded

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"pizzaflow/kafka"
)

// batchOf is a batch of records as on the wire, without the checksums, which the broker checks.
func batchOf(records []byte, n int32, change func(*kmsg.RecordBatch)) []byte {
	b := kmsg.RecordBatch{
		Magic: 2, NumRecords: n, LastOffsetDelta: n - 1, ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, Records: records,
	}
	if change != nil {
		change(&b)
	}
	return b.AppendTo(nil)
}

func recordOf(change func(*kmsg.Record)) []byte {
	r := kmsg.Record{Key: []byte("key"), Value: []byte("value"), Headers: []kmsg.Header{{Key: "colour", Value: []byte("green")}}}
	r.Length = int32(len(r.AppendTo(nil)) - 1)
	if change != nil {
		change(&r)
	}
	return r.AppendTo(nil)
}

func TestValidBatchesAreAccepted(t *testing.T) {
	second := recordOf(func(r *kmsg.Record) { r.OffsetDelta, r.Key, r.Length = 1, nil, r.Length-3 })
	records := append(recordOf(nil), second...)
	if _, err := checkBatch(batchOf(records, 2, nil), maxUnpacked); err != nil {
		t.Errorf("two records: %v", err)
	}
	if _, err := checkBatch(batchOf(records, 2, func(b *kmsg.RecordBatch) { b.ProducerID, b.ProducerEpoch, b.FirstSequence = 7, 0, 0 }), maxUnpacked); err != nil {
		t.Errorf("of a producer with an id: %v", err)
	}
	for codec, compression := range map[int16]kgo.CompressionCodec{1: kgo.GzipCompression(), 2: kgo.SnappyCompression(), 3: kgo.Lz4Compression(), 4: kgo.ZstdCompression()} {
		if _, err := checkBatch(batchOf(compressed(t, compression, records), 2, func(b *kmsg.RecordBatch) { b.Attributes = codec }), maxUnpacked); err != nil {
			t.Errorf("compression %d: %v", codec, err)
		}
	}
	block := compressed(t, kgo.SnappyCompression(), records)
	java := append(append(append(slices.Clone(javaSnappy), make([]byte, 8)...), binary.BigEndian.AppendUint32(nil, uint32(len(block)))...), block...)
	if _, err := checkBatch(batchOf(java, 2, func(b *kmsg.RecordBatch) { b.Attributes = 2 }), maxUnpacked); err != nil {
		t.Errorf("Java's snappy: %v", err)
	}
}

func compressed(t *testing.T, codec kgo.CompressionCodec, b []byte) []byte {
	t.Helper()
	c, err := kgo.DefaultCompressor(codec)
	if err != nil {
		t.Fatal(err)
	}
	out, _ := c.Compress(new(bytes.Buffer), b)
	return slices.Clone(out)
}

// A batch whose header and records differ would make the broker panic at a search for a time, or stop a consumer.
func TestInvalidBatchesAreRefused(t *testing.T) {
	good := recordOf(nil)
	bomb := func() []byte {
		z, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		return z.EncodeAll(make([]byte, kafka.MaxBatch+1), nil)
	}()
	if _, err := checkBatch(batchOf(good, 1, nil), len(good)-1); err == nil {
		t.Error("accepted although it exceeds the room")
	}
	for name, batch := range map[string][]byte{
		"nothing":                    nil,
		"a head":                     batchOf(nil, 1, nil),
		"fewer records":              batchOf(good, 2, nil),
		"more records":               batchOf(append(slices.Clone(good), good...), 1, nil),
		"no record":                  batchOf(nil, 0, nil),
		"a negative number":          batchOf(good, -5, nil),
		"two thousand million":       batchOf(good, 1<<31-1, nil),
		"offsets of more":            batchOf(good, 1, func(b *kmsg.RecordBatch) { b.LastOffsetDelta = 7 }),
		"a marker":                   batchOf(good, 1, func(b *kmsg.RecordBatch) { b.Attributes = batchIsControl }),
		"an unknown compression":     batchOf(good, 1, func(b *kmsg.RecordBatch) { b.Attributes = 7 }),
		"no gzip":                    batchOf(good, 1, func(b *kmsg.RecordBatch) { b.Attributes = 1 }),
		"no snappy":                  batchOf(good, 1, func(b *kmsg.RecordBatch) { b.Attributes = 2 }),
		"no lz4":                     batchOf(good, 1, func(b *kmsg.RecordBatch) { b.Attributes = 3 }),
		"no zstd":                    batchOf(good, 1, func(b *kmsg.RecordBatch) { b.Attributes = 4 }),
		"64 MiB of zeros":            batchOf(bomb, 1, func(b *kmsg.RecordBatch) { b.Attributes = 4 }),
		"a snappy that claims 2 GiB": batchOf([]byte{0xff, 0xff, 0xff, 0xff, 0x07, 0}, 1, func(b *kmsg.RecordBatch) { b.Attributes = 2 }),
		"a length too large":         batchOf(recordOf(func(r *kmsg.Record) { r.Length += 200 }), 1, nil),
		"a length too small":         batchOf(recordOf(func(r *kmsg.Record) { r.Length -= 3 }), 1, nil),
		"a negative length":          batchOf(recordOf(func(r *kmsg.Record) { r.Length = -4 }), 1, nil),
		"another place":              batchOf(recordOf(func(r *kmsg.Record) { r.OffsetDelta = 3 }), 1, nil),
		"an id without an epoch":     batchOf(good, 1, func(b *kmsg.RecordBatch) { b.ProducerID = 5 }),
		"a negative id":              batchOf(good, 1, func(b *kmsg.RecordBatch) { b.ProducerID = -7 }),
		"the last epoch":             batchOf(good, 1, func(b *kmsg.RecordBatch) { b.ProducerID, b.ProducerEpoch, b.FirstSequence = 5, 1<<15-1, 0 }),
	} {
		if _, err := checkBatch(batch, maxUnpacked); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Many untrusted clients that fetch and read no answer get a small one each; a trusted client, and an untrusted one that
// is alone, get a whole one.
func TestUntrustedClientsShareFetchMemory(t *testing.T) {
	fetch := kmsg.NewPtrFetchRequest()
	fetch.SetVersion(11)
	fetch.MaxBytes = 1 << 30
	frame := kmsg.NewRequestFormatter().AppendRequest(nil, fetch, 1)
	for _, c := range []struct {
		untrusted int32
		trusted   bool
		want      int32
	}{{1, false, fetchBytes}, {maxConnections, false, maxUntrustedBytes / maxConnections}, {maxConnections, true, fetchBytes}} {
		var f filter
		f.untrusted.Store(c.untrusted)
		d, err := f.decide(slices.Clone(frame), c.trusted)
		if err != nil {
			t.Fatal(err)
		}
		r, _, err := parse(d.requests[0])
		if err != nil {
			t.Fatal(err)
		}
		if got := r.(*kmsg.FetchRequest).MaxBytes; got != c.want {
			t.Errorf("%+v: %d bytes", c, got)
		}
	}
}
