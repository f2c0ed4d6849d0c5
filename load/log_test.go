package load

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// readLog returns the lines of each kind by key.
func readLog(t *testing.T, path string) map[string]map[string]Line {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	lines := map[string]map[string]Line{KindAttempt: {}, KindPlaced: {}, KindRefused: {}, KindUnknown: {}}
	if err := ReadLog(file, func(l Line) error {
		if _, twice := lines[l.Kind][l.Key]; twice {
			return fmt.Errorf("two lines %s of %s", l.Kind, l.Key)
		}
		lines[l.Kind][l.Key] = l
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return lines
}

func newLog(t *testing.T) (*Log, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "promised")
	l, err := CreateLog(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l, path
}

func TestReadLog(t *testing.T) {
	const good = `{"kind":"attempt","key":"k","at":"2026-01-02T03:04:05.000000006Z"}` + "\n"
	for name, c := range map[string]struct {
		text  string
		lines int
		err   error
	}{
		"empty":          {"", 0, nil},
		"whole":          {good + good, 2, nil},
		"torn":           {good + good[:30], 1, nil},
		"torn newline":   {good + good[:len(good)-1], 1, nil},
		"damaged":        {good + "{\n" + good, 1, ErrDamaged},
		"unknown kind":   {strings.Replace(good, "attempt", "eaten", 1), 0, ErrDamaged},
		"no key":         {strings.Replace(good, `"k"`, `""`, 1), 0, ErrDamaged},
		"no time":        {`{"kind":"attempt","key":"k"}` + "\n", 0, ErrDamaged},
		"placed what":    {strings.Replace(good, "attempt", "placed", 1), 0, ErrDamaged},
		"zeros, a crash": {"\x00\x00\x00\n" + good, 0, ErrDamaged},
	} {
		lines := 0
		err := ReadLog(strings.NewReader(c.text), func(Line) error { lines++; return nil })
		if !errors.Is(err, c.err) || lines != c.lines {
			t.Errorf("%s: %d lines, %v; want %d, %v", name, lines, err, c.lines, c.err)
		}
	}
	stop := errors.New("stop")
	if err := ReadLog(strings.NewReader(good), func(Line) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v, want the reader's own error", err)
	}
}

func TestLogKeepsEveryLineOfMany(t *testing.T) {
	t.Parallel()
	log, path := newLog(t)
	var many sync.WaitGroup
	for i := range 200 {
		many.Go(func() {
			if err := log.Append(&Line{Kind: KindAttempt, Key: fmt.Sprint(i), At: time.Now()}); err != nil {
				t.Error(err)
			}
			if _, ok := readLog(t, path)[KindAttempt][fmt.Sprint(i)]; !ok {
				t.Errorf("line %d is not in the file when Append returns", i)
			}
		})
	}
	many.Wait()
	if n := len(readLog(t, path)[KindAttempt]); n != 200 {
		t.Errorf("%d lines, want 200", n)
	}
	if _, err := CreateLog(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("%v: the log of another run must not be touched", err)
	}
}

// An append returns as soon as its own line is on disk, however many follow.
func TestNobodyWritesForOthersInsteadOfGoingOn(t *testing.T) {
	const writers, enough = 64, 8000
	log, _ := newLog(t)
	var all atomic.Int64
	var each [writers]int
	var work sync.WaitGroup
	for n := range writers {
		work.Go(func() {
			for all.Add(1) < enough {
				if err := log.Append(&Line{Kind: KindAttempt, Key: "k", At: time.Unix(1, 0)}); err != nil {
					t.Error(err)
				}
				each[n]++
			}
		})
	}
	work.Wait()
	for n, lines := range each {
		if lines < enough/writers/2 {
			t.Errorf("writer %d wrote %d lines, of %v", n, lines, each)
		}
	}
}
