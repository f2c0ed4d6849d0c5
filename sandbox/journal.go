package sandbox

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// errDamaged is the error of a file with an unreadable line before its last.
var errDamaged = errors.New("damaged evidence")

// journal is an append-only file of JSON lines. An append waits for its sync; appends
// that wait at the same time share one.
type journal struct {
	file *os.File

	mu      sync.Mutex // guards the fields below
	size    int64      // where the next line begins
	pending []func()   // the applies of lines not synced, in file order
	broken  error      // after a failed sync it is unknown what is on disk

	synced  int64         // lines before it are on disk
	syncing chan struct{} // closed when the sync under way ends; nil without one
	linger  time.Duration // before the next sync; see flush
}

// maxLinger is the limit of linger, and so of the latency that sharing a sync adds.
const maxLinger = 3 * time.Millisecond

// openJournal opens or creates the file and calls load with each of its lines. A torn
// last line is cut off; a damaged line before it is an error.
func openJournal(path string, log *slog.Logger, load func(line []byte, at int64) error) (*journal, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	j := &journal{file: file}
	if err := j.load(log, load); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", filepath.Base(path), err), file.Close())
	}
	return j, nil
}

func (j *journal) load(log *slog.Logger, load func(line []byte, at int64) error) error {
	info, err := j.file.Stat()
	if err != nil {
		return err
	}
	lines := bufio.NewReaderSize(io.NewSectionReader(j.file, 0, info.Size()), 64<<10)
	var buf []byte
	for {
		line, err := readLine(lines, &buf)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		end := j.size + int64(len(line))
		torn := errors.Is(err, io.EOF)
		if !torn {
			last := end == info.Size()
			if last && !json.Valid(line) {
				torn = true
			} else if err := load(line, j.size); err != nil {
				return fmt.Errorf("%w at byte %d: %w", errDamaged, j.size, err)
			}
		}
		if torn {
			return j.cutTail(log, info.Size())
		}
		j.size = end
	}
}

// cutTail removes a torn line after the last whole one. No client had an answer for
// it: an answer waits for the sync of its line.
func (j *journal) cutTail(log *slog.Logger, end int64) error {
	if end > j.size {
		log.Warn("torn line cut off", "file", filepath.Base(j.file.Name()), "bytes", end-j.size)
		if err := j.file.Truncate(j.size); err != nil {
			return err
		}
	}
	// The lines that an earlier process did not sync are shown as facts from now on.
	if err := j.file.Sync(); err != nil {
		return err
	}
	j.synced = j.size
	return nil
}

// readLine returns the next line with its newline, valid until the next call. With
// io.EOF it returns the rest without a newline.
func readLine(r *bufio.Reader, buf *[]byte) ([]byte, error) {
	*buf = (*buf)[:0]
	for {
		part, err := r.ReadSlice('\n')
		*buf = append(*buf, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return *buf, err
		}
	}
}

// encodeLine returns v as one line of JSON with its newline.
func encodeLine(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false) // an HTML mail would grow by a fifth
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode line: %w", err)
	}
	return buf.Bytes(), nil
}

// appendUnsynced writes a line without waiting for the disk. The line survives a crash
// of the process at once, and one of the machine after the next append.
func (j *journal) appendUnsynced(line []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	_, err := j.writeLine(line)
	return err
}

// append writes a line and returns when the line is synced and apply has run, which
// is called with the offset of the line. The applies run one at a time in the order of
// the lines, so that memory equals the state that a restart loads.
func (j *journal) append(line []byte, apply func(at int64)) error {
	j.mu.Lock()
	at, err := j.writeLine(line)
	if err == nil {
		j.pending = append(j.pending, func() { apply(at) })
	}
	end := j.size
	j.mu.Unlock()
	if err != nil {
		return err
	}
	return j.awaitSync(end)
}

// writeLine writes the line, which ends with a newline; the caller holds mu.
func (j *journal) writeLine(line []byte) (at int64, err error) {
	if j.broken != nil {
		return 0, j.broken
	}
	at = j.size
	n, err := j.file.WriteAt(line, at)
	if err != nil {
		// A full disk must not leave half a line in front of the next one.
		if n > 0 {
			if cut := j.file.Truncate(at); cut != nil {
				j.broken = errors.Join(err, cut)
			}
		}
		return 0, fmt.Errorf("keep evidence: %w", err)
	}
	j.size = at + int64(n)
	return at, nil
}

// awaitSync returns when the lines before end are on disk. One caller at a time syncs
// all lines written so far; callers that arrive meanwhile wait, and one of them makes
// the next sync.
func (j *journal) awaitSync(end int64) error {
	for {
		j.mu.Lock()
		switch {
		case j.synced >= end:
			j.mu.Unlock()
			return nil
		case j.broken != nil:
			defer j.mu.Unlock()
			return j.broken
		case j.syncing == nil:
			j.syncing = make(chan struct{})
			linger := j.linger
			j.mu.Unlock()
			time.Sleep(linger)
			j.flush()
		default:
			syncing := j.syncing
			j.mu.Unlock()
			<-syncing
		}
	}
}

// flush syncs the file and runs the pending applies. If several appends shared the
// sync, the next one is delayed by as long as this one took, so that more share it:
// fewer syncs leave more of the disk to the databases.
func (j *journal) flush() {
	j.mu.Lock()
	size, applies := j.size, j.pending
	j.pending = nil
	j.mu.Unlock()
	began := time.Now()
	err := j.file.Sync()
	took := time.Since(began)
	if err == nil {
		for _, apply := range applies {
			apply()
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		j.broken = fmt.Errorf("keep evidence: %w", err)
	} else {
		j.synced = size
	}
	j.linger = 0
	if len(applies) > 1 {
		j.linger = min(took, maxLinger)
	}
	close(j.syncing)
	j.syncing = nil
}

// newReader returns a reader of every line written so far.
func (j *journal) newReader() *bufio.Reader {
	j.mu.Lock()
	defer j.mu.Unlock()
	return bufio.NewReaderSize(io.NewSectionReader(j.file, 0, j.size), 64<<10)
}

// readAt reads len(line) bytes at the offset.
func (j *journal) readAt(line []byte, at int64) error {
	_, err := j.file.ReadAt(line, at)
	return err
}

// close syncs and closes the file. Later calls return os.ErrClosed.
func (j *journal) close() error {
	j.mu.Lock()
	size := j.size
	j.mu.Unlock()
	err := j.awaitSync(size)
	return errors.Join(err, j.file.Close())
}

// syncDir makes the names of the files in the folder durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
