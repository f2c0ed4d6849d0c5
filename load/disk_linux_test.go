package load

import (
	"errors"
	"net/http"
	"os"
	"sync"
	"syscall"
	"testing"
)

// fill makes the log's disk full.
func fill(t *testing.T, l *Log) {
	t.Helper()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	if err := syscall.Dup3(int(full.Fd()), int(l.file.Fd()), 0); err != nil {
		t.Fatal(err)
	}
}

// A pipe accepts writes and cannot be synced.
func TestALineThatIsNotSyncedIsNotKept(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	log := &Log{file: w}
	for range 2 {
		if err := log.Append(&Line{Kind: KindAttempt, Key: "k"}); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%v, want that the sync did not work, and no line after that", err)
		}
	}
	if err := log.Close(); err != nil {
		t.Error(err)
	}
}

func TestNothingIsSentThatTheLogDoesNotTake(t *testing.T) {
	s := newShop(t, created, nil)
	log, _ := newLog(t)
	fill(t, log)
	cfg := config(s.URL)
	cfg.Log, cfg.Orders = log, 100_000
	r, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	report, err := r.Wait()
	if !errors.Is(err, syscall.ENOSPC) || report.Placed != 0 || report.NotSent == 0 || len(s.seen()) != 0 || report.OK() {
		t.Errorf("%v; %+v; %d sent", err, report, len(s.seen()))
	}
}

func TestNothingIsPlacedThatTheLogDoesNotTake(t *testing.T) {
	log, path := newLog(t)
	var once sync.Once
	s := newShop(t, func(w http.ResponseWriter, key string, try int) {
		once.Do(func() { fill(t, log) })
		created(w, key, try)
	}, nil)
	cfg := config(s.URL)
	cfg.Log, cfg.Orders = log, 100_000
	r, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	report, err := r.Wait()
	if !errors.Is(err, syscall.ENOSPC) || report.Placed != 0 || report.Unknown == 0 || report.OK() {
		t.Errorf("%v; %+v", err, report)
	}
	if lines := readLog(t, path); len(lines[KindAttempt]) < report.Unknown || len(lines[KindPlaced]) != 0 {
		t.Errorf("%+v", lines)
	}
}
