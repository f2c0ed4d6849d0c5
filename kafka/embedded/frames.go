package embedded

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// The broker appends committed offsets and producer ids to logs that consist of frames:
//
//	length  4 bytes, little endian, of version and data
//	sum     4 bytes, little endian, CRC-32C of version and data
//	version 2 bytes
//	data    JSON
//
// It reads a log up to the first frame that is not whole and then appends after it, so that one frame that was
// torn by a crash or a full disk hides all later ones for ever.
const (
	frameHead = 10
	maxFrame  = 1 << 20 // far more than any entry has
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frameAt returns the frame at the beginning of raw, or nil without a whole one.
func frameAt(raw []byte) []byte {
	if len(raw) < frameHead {
		return nil
	}
	length := binary.LittleEndian.Uint32(raw)
	if length < 2 || length > maxFrame || int(length) > len(raw)-8 {
		return nil
	}
	frame := raw[:8+length]
	if crc32.Checksum(frame[8:], castagnoli) != binary.LittleEndian.Uint32(frame[4:]) {
		return nil
	}
	return frame
}

// wholeFrames returns every whole frame of raw, also after a torn one, and how many bytes belong to no whole frame.
func wholeFrames(raw []byte) (frames [][]byte, torn int) {
	for len(raw) > 0 {
		if f := frameAt(raw); f != nil {
			frames = append(frames, f)
			raw = raw[len(f):]
		} else {
			torn++
			raw = raw[1:]
		}
	}
	return frames, torn
}

// repairLog rewrites the log at path with its whole frames, if there are other bytes in it.
func repairLog(path string, log *slog.Logger) error {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	frames, torn := wholeFrames(raw)
	if torn == 0 {
		return nil
	}
	if err := writeFrames(path, frames); err != nil {
		return err
	}
	log.Warn("embedded broker: removed torn entries from a log", "file", path, "bytes", torn, "entries_kept", len(frames))
	return nil
}

// writeFrames replaces the log at path; after a crash there is the old log or the new one.
func writeFrames(path string, frames [][]byte) error {
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	for _, frame := range frames {
		if _, err := f.Write(frame); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// A commit identifies a committed offset.
type commit struct {
	Group     string `json:"g"`
	Topic     string `json:"t"`
	Partition int32  `json:"p"`
}

// commitIn returns the committed offset in a frame of groups.log; ok is false for a frame of another kind.
func commitIn(frame []byte) (c commit, offset int64, ok bool) {
	var entry struct {
		Type string `json:"type"`
		commit
		Offset int64 `json:"o"`
	}
	if json.Unmarshal(frame[frameHead:], &entry) != nil || entry.Type != "commit" {
		return commit{}, 0, false
	}
	return entry.commit, entry.Offset, true
}

// readCommits returns the last committed offsets in groups.log.
func readCommits(dir string) (map[commit]int64, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "groups.log"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	commits := make(map[commit]int64)
	frames, _ := wholeFrames(raw)
	for _, f := range frames {
		if c, offset, ok := commitIn(f); ok {
			commits[c] = offset
		}
	}
	return commits, nil
}

// dropCommits removes committed offsets from groups.log; their groups begin again at the start of the partition.
func dropCommits(dir string, drop map[commit]bool, log *slog.Logger) error {
	path := filepath.Join(dir, "groups.log")
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	frames, _ := wholeFrames(raw)
	var keep [][]byte
	for _, f := range frames {
		if c, _, ok := commitIn(f); !ok || !drop[c] {
			keep = append(keep, f)
		}
	}
	if err := writeFrames(path, keep); err != nil {
		return fmt.Errorf("drop stale offsets: %w", err)
	}
	for c := range drop {
		log.Warn("embedded broker: dropped a committed offset past the end of its partition",
			"consumer_group", c.Group, "topic", c.Topic, "partition", c.Partition)
	}
	return nil
}
