package load

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Kinds of a [Line].
const (
	KindAttempt = "attempt" // the order may be sent after this line
	KindPlaced  = "placed"  // the system promised the order: it answered 201
	KindRefused = "refused" // the system refused the order for good: a 4xx
	KindUnknown = "unknown" // there was no answer; the order may exist or not
)

// ErrDamaged is the error of a log with an unreadable line before its last.
var ErrDamaged = errors.New("damaged log")

// Line is one line of the log. Every order has an attempt line, which is on
// disk before the order is first sent, and at most one line of another kind
// under the same key. An order with an attempt line alone is unknown, too: the
// process died.
type Line struct {
	Kind        string    `json:"kind"`
	Key         string    `json:"key"`                    // the Idempotency-Key of every try
	OrderID     string    `json:"order_id,omitempty"`     // placed
	OrderNumber string    `json:"order_number,omitempty"` // placed
	Total       int64     `json:"total,omitempty"`        // placed: minor units
	OrderStatus string    `json:"order_status,omitempty"` // placed: as answered
	Status      int       `json:"status,omitempty"`       // the last HTTP status; 0 when there never was one
	At          time.Time `json:"at"`                     // attempt: the scheduled time; else the time of the answer, or of giving up
}

func (l *Line) check() error {
	switch {
	case l.Key == "":
		return errors.New("no key")
	case l.At.IsZero():
		return errors.New("no time")
	case l.Kind == KindPlaced && l.OrderID == "":
		return errors.New("placed without an order_id")
	}
	switch l.Kind {
	case KindAttempt, KindPlaced, KindRefused, KindUnknown:
		return nil
	}
	return fmt.Errorf("kind %q is not known", l.Kind)
}

// ReadLog calls use with each line of a log, in order, and returns its first error. A
// last line without its newline is torn: nothing relied on it, and it is skipped. Any
// other unreadable line is [ErrDamaged].
func ReadLog(r io.Reader, use func(Line) error) error {
	lines := bufio.NewReader(r)
	for n := 1; ; n++ {
		text, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		var line Line
		if err := json.Unmarshal(text, &line); err != nil {
			return fmt.Errorf("%w: line %d: %w", ErrDamaged, n, err)
		}
		if err := line.check(); err != nil {
			return fmt.Errorf("%w: line %d: %w", ErrDamaged, n, err)
		}
		if err := use(line); err != nil {
			return err
		}
	}
}

// Log is an append-only file of lines. An append waits for its sync; appends that wait
// at the same time share one.
type Log struct {
	file *os.File

	mu      sync.Mutex
	pending bytes.Buffer // lines not written yet
	batch   *batch       // of the pending lines; nil without any
	busy    bool         // flush is running
	broken  error        // after a failed write or sync it is unknown what is on disk
}

// A batch is a number of lines that share a sync.
type batch struct {
	done chan struct{} // closed when err is final
	err  error
}

// CreateLog creates the file and makes its name durable. It refuses a file that exists:
// it may have the promises of another run.
func CreateLog(path string) (*Log, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create log: %w", err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create log: %w", err), file.Close())
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("create log: %w", err), file.Close())
	}
	return &Log{file: file}, nil
}

// Append returns nil when the line is on disk. After an error every Append
// fails. It is safe for concurrent use. On a nil Log it does nothing.
func (l *Log) Append(line *Line) error {
	if l == nil {
		return nil
	}
	stored := *line
	stored.At = line.At.UTC() // without the monotonic clock, which the caller's line keeps
	text, err := json.Marshal(stored)
	if err != nil {
		return fmt.Errorf("encode line: %w", err)
	}
	l.mu.Lock()
	if l.broken != nil {
		defer l.mu.Unlock()
		return l.broken
	}
	l.pending.Write(text)
	l.pending.WriteByte('\n')
	if l.batch == nil {
		l.batch = &batch{done: make(chan struct{})}
	}
	mine := l.batch
	if !l.busy { // in a goroutine of its own, so that no append writes the lines of later ones
		l.busy = true
		go l.flush()
	}
	l.mu.Unlock()
	<-mine.done
	return mine.err
}

// flush writes and syncs batches until no line is pending.
func (l *Log) flush() {
	for {
		l.mu.Lock()
		next := l.batch
		if next == nil {
			l.busy = false
			l.mu.Unlock()
			return
		}
		text := bytes.Clone(l.pending.Bytes())
		l.pending.Reset()
		l.batch = nil
		err := l.broken
		l.mu.Unlock()
		if err == nil {
			err = l.write(text)
		}
		next.err = err
		close(next.done)
	}
}

func (l *Log) write(text []byte) error {
	_, err := l.file.Write(text)
	if err == nil {
		err = l.file.Sync()
	}
	if err == nil {
		return nil
	}
	err = fmt.Errorf("write log: %w", err)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = err
	return err
}

// Close closes the file. No Append may be under way.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	return l.file.Close()
}
