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

// errDamaged says that a file holds a line, not its last, that cannot be read.
var errDamaged = errors.New("damaged evidence")

// journal is an append-only file of JSON lines. Whoever appends waits for the
// sync; those who wait at the same time share one.
type journal struct {
	file *os.File

	write   sync.Mutex // guards what follows
	size    int64      // where the next line begins
	applies []func()   // what becomes visible with the next sync, in file order
	broken  error      // after a failed sync nobody knows what is on disk

	synced  int64         // what is before it is on disk; guarded by write
	syncing chan struct{} // closed by the one who syncs when he has; nil when nobody does
	linger  time.Duration // before the next sync; see flush
}

// maxLinger bounds how much later an answer is for having shared its sync.
const maxLinger = 3 * time.Millisecond

// openJournal opens or creates the file and hands each of its lines to load.
// A torn last line is cut off; a damaged one before it is an error.
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

// cutTail removes what follows the last whole line. Nobody was told of it:
// an answer waits for the sync of its line.
func (j *journal) cutTail(log *slog.Logger, end int64) error {
	if end > j.size {
		log.Warn("torn line cut off", "file", filepath.Base(j.file.Name()), "bytes", end-j.size)
		if err := j.file.Truncate(j.size); err != nil {
			return err
		}
	}
	// What an earlier process wrote and did not sync is now shown as fact.
	if err := j.file.Sync(); err != nil {
		return err
	}
	j.synced = j.size
	return nil
}

// readLine returns the next line with its newline, valid until the next call;
// io.EOF comes with what is left when no newline follows.
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

// note writes a line without waiting for the disk: it outlives the process at
// once, and the machine with the next append.
func (j *journal) note(line []byte) error {
	j.write.Lock()
	defer j.write.Unlock()
	_, err := j.put(line)
	return err
}

// append writes a line and returns when it is synced and apply, called with
// the place of the line, has run. The applies of a journal run one at a time,
// in the order of the lines, so that memory equals what a restart would load.
func (j *journal) append(line []byte, apply func(at int64)) error {
	j.write.Lock()
	at, err := j.put(line)
	if err == nil {
		j.applies = append(j.applies, func() { apply(at) })
	}
	end := j.size
	j.write.Unlock()
	if err != nil {
		return err
	}
	return j.sync(end)
}

// put writes the line, which ends with a newline; the caller holds write.
func (j *journal) put(line []byte) (at int64, err error) {
	if j.broken != nil {
		return 0, j.broken
	}
	at = j.size
	n, err := j.file.WriteAt(line, at)
	if err != nil {
		// A full disk must leave no half line for the next one to follow.
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

// sync returns when everything before end is on disk. One at a time syncs, for
// all who wrote until then; those who come meanwhile wait for him, all at once,
// and one of them is the next.
func (j *journal) sync(end int64) error {
	for {
		j.write.Lock()
		switch {
		case j.synced >= end:
			j.write.Unlock()
			return nil
		case j.broken != nil:
			defer j.write.Unlock()
			return j.broken
		case j.syncing == nil:
			j.syncing = make(chan struct{})
			linger := j.linger
			j.write.Unlock()
			time.Sleep(linger)
			j.flush()
		default:
			syncing := j.syncing
			j.write.Unlock()
			<-syncing
		}
	}
}

// flush syncs what is written, and makes it visible. Where several waited for
// it the next one lingers as long as it took, so that more share it: the disk
// has others to serve.
func (j *journal) flush() {
	j.write.Lock()
	size, applies := j.size, j.applies
	j.applies = nil
	j.write.Unlock()
	began := time.Now()
	err := j.file.Sync()
	took := time.Since(began)
	if err == nil {
		for _, apply := range applies {
			apply()
		}
	}
	j.write.Lock()
	defer j.write.Unlock()
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

// whole returns a reader of every line written so far.
func (j *journal) whole() *bufio.Reader {
	j.write.Lock()
	defer j.write.Unlock()
	return bufio.NewReaderSize(io.NewSectionReader(j.file, 0, j.size), 64<<10)
}

// readAt fills line from its place in the file.
func (j *journal) readAt(line []byte, at int64) error {
	_, err := j.file.ReadAt(line, at)
	return err
}

// close syncs and closes the file. Whoever comes later gets os.ErrClosed.
func (j *journal) close() error {
	j.write.Lock()
	size := j.size
	j.write.Unlock()
	err := j.sync(size)
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
