package embedded

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"pizzaflow/kafka"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// The header of a batch of records: its length, the places of its fields, the bits of its attributes.
const (
	batchHead       = 61
	batchMagic      = 16
	batchAttributes = 21
	batchLastOffset = 23
	batchProducer   = 43
	batchEpoch      = 51
	batchSequence   = 53
	batchRecords    = 57

	batchIsControl = 0x20
	batchCodec     = 0x07

	lastEpoch = 1<<15 - 3 // of a producer: after the next one the broker gives the producer another id
)

var (
	errBatch    = errors.New("a batch of records that is not valid")
	errUnpacked = fmt.Errorf("more than %d bytes in a batch, or %d in those of a request", kafka.MaxBatch, maxUnpacked)
)

// checkBatch returns an error unless a batch of records can be read again. The broker stores a batch without checking it,
// and trusts its contents when it searches for a time: an error inside would make it panic then, and would stop
// consumers. The batch may unpack to room bytes, and to kafka.MaxBatch at most; left is the rest of room.
func checkBatch(b []byte, room int) (left int, err error) {
	if len(b) < batchHead {
		return room, errBatch
	}
	if b[batchMagic] != 2 {
		return room, nil // an older format, which the broker refuses
	}
	attributes := binary.BigEndian.Uint16(b[batchAttributes:])
	producer := int64(binary.BigEndian.Uint64(b[batchProducer:]))
	epoch := int16(binary.BigEndian.Uint16(b[batchEpoch:]))
	sequence := int32(binary.BigEndian.Uint32(b[batchSequence:]))
	records := int32(binary.BigEndian.Uint32(b[batchRecords:]))
	last := int32(binary.BigEndian.Uint32(b[batchLastOffset:]))
	switch {
	case attributes&batchIsControl != 0, records < 1, last != records-1:
		return room, errBatch
	case producer < -1, producer >= 0 && (epoch < 0 || epoch > lastEpoch || sequence < 0):
		return room, errBatch
	}
	content, err := unpack(attributes&batchCodec, b[batchHead:])
	if err != nil {
		return room, err
	}
	most := min(room, kafka.MaxBatch)
	unpacked := &limited{content, most}
	err = checkRecords(bufio.NewReader(unpacked), records)
	return room - (most - unpacked.left), err
}

// unpack returns a reader that decompresses the records of a batch.
func unpack(codec uint16, b []byte) (io.Reader, error) {
	in := bytes.NewReader(b)
	switch codec {
	case 0:
		return in, nil
	case 1:
		return gzip.NewReader(in)
	case 2:
		return unpackSnappy(b)
	case 3:
		return lz4.NewReader(in), nil
	case 4:
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(kafka.MaxBatch))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	default:
		return nil, errBatch
	}
}

// javaSnappy is the magic number of snappy blocks as Java writes them; two versions follow it.
var javaSnappy = []byte{130, 83, 78, 65, 80, 80, 89, 0}

const javaSnappyHead = 16

// unpackSnappy decompresses one block, or the blocks of Java's format.
func unpackSnappy(b []byte) (io.Reader, error) {
	if !bytes.HasPrefix(b, javaSnappy) {
		out, err := snappyBlock(b, kafka.MaxBatch)
		return bytes.NewReader(out), err
	}
	if len(b) < javaSnappyHead {
		return nil, errBatch
	}
	var out []byte
	for b = b[javaSnappyHead:]; len(b) > 0; {
		if len(b) < 4 {
			return nil, errBatch
		}
		n := uint64(binary.BigEndian.Uint32(b))
		if b = b[4:]; n > uint64(len(b)) {
			return nil, errBatch
		}
		block, err := snappyBlock(b[:n], kafka.MaxBatch-len(out))
		if err != nil {
			return nil, err
		}
		out, b = append(out, block...), b[n:]
	}
	return bytes.NewReader(out), nil
}

func snappyBlock(b []byte, room int) ([]byte, error) {
	if n, err := s2.DecodedLen(b); err != nil || n > room {
		return nil, errBatch
	}
	return s2.Decode(nil, b)
}

// A limited reader returns an error at its limit, where io.LimitedReader ends.
type limited struct {
	r    io.Reader
	left int
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= n; l.left < 0 {
		return 0, errUnpacked
	}
	return n, err
}

// checkRecords reads n records, and checks that they are all.
func checkRecords(r *bufio.Reader, n int32) error {
	for i := range n {
		size, err := binary.ReadVarint(r)
		if err != nil || size < 0 || size > kafka.MaxBatch {
			return errBatch
		}
		record := &recordReader{Reader: r, left: int(size)}
		if err := record.check(i); err != nil {
			return err
		}
	}
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		return errBatch
	}
	return nil
}

// A recordReader reads one record of a known length.
type recordReader struct {
	*bufio.Reader
	left int
}

func (r *recordReader) ReadByte() (byte, error) {
	if r.left--; r.left < 0 {
		return 0, errBatch
	}
	return r.Reader.ReadByte()
}

// check reads attributes, time, offset delta, key, value and headers, and checks that no byte is left.
func (r *recordReader) check(offsetDelta int32) error {
	if _, err := r.ReadByte(); err != nil {
		return errBatch
	}
	if _, err := binary.ReadVarint(r); err != nil {
		return errBatch
	}
	if delta, err := binary.ReadVarint(r); err != nil || delta != int64(offsetDelta) {
		return errBatch
	}
	for range 2 { // key and value, which may be null
		if r.skip(-1) != nil {
			return errBatch
		}
	}
	headers, err := binary.ReadVarint(r)
	if err != nil || headers < 0 || headers > int64(r.left) {
		return errBatch
	}
	for range headers {
		if r.skip(0) != nil || r.skip(-1) != nil {
			return errBatch
		}
	}
	if r.left != 0 {
		return errBatch
	}
	return nil
}

// skip reads a length, which must be at least least, and skips as many bytes.
func (r *recordReader) skip(least int64) error {
	n, err := binary.ReadVarint(r)
	if err != nil || n < least || n > int64(r.left) {
		return errBatch
	}
	skipped, err := r.Discard(int(max(n, 0)))
	r.left -= skipped
	return err
}
