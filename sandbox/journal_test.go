package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// lines opens a journal and returns it with its lines.
func lines(t *testing.T, path string) (*journal, []string) {
	t.Helper()
	var held []string
	j, err := openJournal(path, slog.New(slog.NewTextHandler(t.Output(), nil)), func(line []byte, at int64) error {
		held = append(held, fmt.Sprint(at, string(line)))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.close(); err != nil && !errors.Is(err, os.ErrClosed) && !errors.Is(err, syscall.EINVAL) {
			t.Error(err)
		}
	})
	return j, held
}

func TestJournalAppliesInFileOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j.jsonl")
	j, _ := lines(t, path)
	var applied []string
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			line := fmt.Sprintf("{\"n\":%d,\"pad\":%q}\n", i, strings.Repeat("x", i))
			if i%10 == 0 {
				if err := j.appendUnsynced([]byte(line)); err != nil {
					t.Error(err)
				}
				return
			}
			if err := j.append([]byte(line), func(at int64) { applied = append(applied, fmt.Sprint(at, line)) }); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	_, held := lines(t, path)
	if len(held) != 200 {
		t.Fatalf("%d lines", len(held))
	}
	var appended []string
	for _, line := range held {
		if !strings.Contains(line, `0,"pad`) {
			appended = append(appended, line)
		}
	}
	if strings.Join(appended, "") != strings.Join(applied, "") {
		t.Error("applied in another order than written")
	}
}

func TestTornTail(t *testing.T) {
	for name, tail := range map[string]string{
		"half a line":           `{"charge":{"id":"ch_torn","idempot`,
		"no newline":            `{"charge":{"id":"ch_torn"}}`,
		"a line never finished": "{\"charge\":\x00\x00\x00\x00\n",
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, t.TempDir())
			_, c := w.charge("key", "ivan@example.com", "order")
			w.post("/sms/messages", "", `{"to":"+79001234567","text":"hi"}`)
			if err := w.stop(); err != nil {
				t.Fatal(err)
			}
			sizes := map[string]int64{}
			for _, file := range []string{"payments.jsonl", "sms.jsonl", "mail.jsonl"} {
				sizes[file] = appendTo(t, filepath.Join(w.dir, file), tail)
			}
			w = start(t, w.dir)
			for file, size := range sizes {
				if info, err := os.Stat(filepath.Join(w.dir, file)); err != nil || info.Size() != size {
					t.Errorf("%s: %v %v, want %d bytes", file, info.Size(), err, size)
				}
			}
			w.charge("key-2", "ivan@example.com", "order-2")
			if found := w.ledger(""); len(found) != 2 || found[0] != c {
				t.Errorf("%+v", found)
			}
			if found := get[[]sms](w, "/sms/messages"); len(found) != 1 {
				t.Errorf("%+v", found)
			}
		})
	}
}

// appendTo appends the text and returns the size before.
func appendTo(t *testing.T, path, text string) int64 {
	t.Helper()
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func TestDamageIsNotCutAway(t *testing.T) {
	for _, file := range []string{"payments.jsonl", "mail.jsonl", "sms.jsonl"} {
		dir := t.TempDir()
		path := filepath.Join(dir, file)
		text := []byte("{\"to\":\n{\"to\":\"+79001234567\"}\n")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := Open(Config{Dir: dir}); !errors.Is(err, errDamaged) || s != nil {
			t.Errorf("%s: %v", file, err)
		}
		if kept, err := os.ReadFile(path); err != nil || !bytes.Equal(kept, text) {
			t.Errorf("%s was changed: %q %v", file, kept, err)
		}
	}
}

// TestFullDisk writes to a device that is always full: no request succeeds, and when
// there is room again the same key does.
func TestFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no /dev/full here")
	}
	defer full.Close()
	w := start(t, t.TempDir())
	j, room := w.sandbox.payments.journal, w.sandbox.payments.journal.file
	swap := func(file *os.File) {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.file = file
	}
	swap(full)
	status, body := w.post("/payments/charges", "key", chargeBody("ivan@example.com", "order"))
	if e := decodeAs[apiError](t, body); status != 500 || e.Code != "sandbox_failed" {
		t.Errorf("%d %s", status, body)
	}
	swap(room)
	if found := w.ledger(""); len(found) != 0 {
		t.Errorf("%+v", found)
	}
	if status, _ := w.charge("key", "ivan@example.com", "order"); status != 201 {
		t.Errorf("with room again: %d", status)
	}
}

// TestFailedSync: after a failed sync no request succeeds.
func TestFailedSync(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if null.Sync() == nil {
		t.Skip("the null device can be synced here")
	}
	j, _ := lines(t, filepath.Join(t.TempDir(), "j.jsonl"))
	if err := j.file.Close(); err != nil {
		t.Fatal(err)
	}
	j.file = null
	applied := false
	for range 2 {
		if err := j.append([]byte("{}\n"), func(int64) { applied = true }); err == nil || applied {
			t.Errorf("err %v, applied %v", err, applied)
		}
	}
}
