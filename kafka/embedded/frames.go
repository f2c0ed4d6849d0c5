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

// The broker appends committed offsets and producer ids to logs of frames:
//
//	length  4 bytes, little endian, of version and data
//	sum     4 bytes, little endian, CRC-32C of version and data
//	version 2 bytes
//	data    JSON
//
// It reads such a log up to the first frame that is not whole and then appends behind it, so that one frame
// torn by a crash or a full disk hides all later ones for ever.
const (
	frameHead = 10
	maxFrame  = 1 << 20 // far above any entry
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frameAt returns the frame at the beginning of raw, nil when there is no whole one.
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

// wholeFrames returns every whole frame of raw, those behind a torn one too, and how many bytes belong to none.
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

// mendLog rewrites the log at path with its whole frames, if something else is in it.
func mendLog(path string, log *slog.Logger) error {
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
	log.Warn("took torn entries out of a log of the embedded broker", "file", path, "bytes", torn, "entries_kept", len(frames))
	return nil
}

// writeFrames replaces the log at path: after a crash it is the old or the new one.
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

// commit is what a committed offset is for.
type commit struct {
	Group     string `json:"g"`
	Topic     string `json:"t"`
	Partition int32  `json:"p"`
}

// commitIn returns the committed offset that a frame of groups.log holds; ok is false when it holds none.
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

// readCommits returns the offsets in groups.log, the last one of each.
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

// dropCommits takes the given ones out of groups.log; their groups begin again at the start of the log.
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
		log.Warn("dropped a committed offset past the end of its log",
			"consumer_group", c.Group, "topic", c.Topic, "partition", c.Partition)
	}
	return nil
}
