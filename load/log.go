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
	KindAttempt = "attempt" // the order may have been sent from now on
	KindPlaced  = "placed"  // the system promised the order: it answered 201
	KindRefused = "refused" // the system refused the order for good: a 4xx
	KindUnknown = "unknown" // nobody told; the order may exist or not
)

// ErrDamaged says that a log holds a line, not its last, that cannot be read.
var ErrDamaged = errors.New("damaged log")

// Line is one line of the log. Every order has an attempt line, which is on
// disk before the order is first sent, and at most one line of another kind
// under the same key. An order with an attempt line alone is as unknown as one
// that says so: the process died.
type Line struct {
	Kind        string    `json:"kind"`
	Key         string    `json:"key"`                    // the Idempotency-Key of every try
	OrderID     string    `json:"order_id,omitempty"`     // placed
	OrderNumber string    `json:"order_number,omitempty"` // placed
	Total       int64     `json:"total,omitempty"`        // placed: minor units
	OrderStatus string    `json:"order_status,omitempty"` // placed: as answered
	Status      int       `json:"status,omitempty"`       // the last HTTP status; 0 when there never was one
	At          time.Time `json:"at"`                     // attempt: the appointed time; else when it was answered, or given up
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

// ReadLog hands each line of a log to use, in order, and ends with use's first
// error. A last line without its newline is torn: nothing was claimed by it, and
// it is left out. Any other line that cannot be read is [ErrDamaged].
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

// Log is an append-only file of lines. Whoever appends waits for the sync;
// those who wait at the same time share one.
type Log struct {
	file *os.File

	mu      sync.Mutex
	pending bytes.Buffer // not written yet
	batch   *batch       // of those whose lines are pending; nil when there are none
	busy    bool         // somebody writes
	broken  error        // after a failed write or sync nobody knows what is on disk
}

// A batch is the lines that one sync makes durable.
type batch struct {
	done chan struct{} // closed when err is final
	err  error
}

// CreateLog creates the file and makes its name durable. A file that exists is
// refused: it may hold the promises of another run.
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
// fails. It is safe for concurrent use; a nil Log keeps nothing.
func (l *Log) Append(line *Line) error {
	if l == nil {
		return nil
	}
	stored := *line
	stored.At = line.At.UTC() // so it has no monotonic clock, which latencies need
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
	if !l.busy { // whoever appended would write for those behind him, and his order would wait for them
		l.busy = true
		go l.flush()
	}
	l.mu.Unlock()
	<-mine.done
	return mine.err
}

// flush writes and syncs batch after batch, until none is pending.
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

// Close closes the file, when nobody appends any more.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	return l.file.Close()
}
