package logs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A record is a line of the log, in JSON.
type record struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (r *record) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.Write(b)
}

// lines returns the lines since the last call, each as `LEVEL message err repeated`.
func (r *record) lines(t *testing.T) []string {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for line := range strings.Lines(r.out.String()) {
		var f struct {
			Level, Msg, Err string
			Repeated        int
		}
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		text := strings.TrimSpace(f.Level + " " + f.Msg + " " + f.Err)
		if f.Repeated > 0 {
			text += fmt.Sprint(" ×", f.Repeated)
		}
		out = append(out, text)
	}
	r.out.Reset()
	return out
}

func (r *record) want(t *testing.T, want ...string) {
	t.Helper()
	if got := r.lines(t); !slices.Equal(got, want) {
		t.Errorf("logged %q, want %q", got, want)
	}
}

func folded() (*slog.Logger, *Handler, *record) {
	r := new(record)
	h := Fold(slog.NewJSONHandler(r, nil))
	return slog.New(h), h, r
}

// A line that is repeated for five minutes is logged once, and then five times.
func TestRepeatedLinesAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, h, out := folded()
		for i := range 429 {
			log.Warn("relay stands by", "service", "order", "epoch", i, "err", fmt.Errorf("away %d", i), "pause", time.Duration(i))
			time.Sleep(700 * time.Millisecond) // never at the end of a minute
		}
		synctest.Wait()
		out.want(t, "WARN relay stands by away 0", "WARN relay stands by away 85 ×85", "WARN relay stands by away 171 ×86",
			"WARN relay stands by away 257 ×86", "WARN relay stands by away 342 ×85", "WARN relay stands by away 428 ×86")

		// A line that has stopped is dropped, and logged as new when it returns.
		time.Sleep(time.Minute + time.Second)
		out.want(t)
		log.Warn("relay stands by", "service", "order", "err", errors.New("again"))
		out.want(t, "WARN relay stands by again")
		log.Warn("relay stands by", "service", "order", "err", errors.New("last"))
		h.Flush()
		out.want(t, "WARN relay stands by last ×1")
		time.Sleep(time.Hour)
		out.want(t)
	})
}

// plain logs as net/http does.
func plain(l *slog.Logger) *log.Logger { return slog.NewLogLogger(l.Handler(), slog.LevelWarn) }

// Only lines of the same kind are folded.
func TestWhatTellsLinesApart(t *testing.T) {
	type names string
	for name, c := range map[string]struct {
		log    func(log *slog.Logger, i int)
		logged int // of ten
	}{
		"nothing":        {func(l *slog.Logger, _ int) { l.Warn("x") }, 1},
		"error":          {func(l *slog.Logger, i int) { l.Error("x", "err", fmt.Errorf("%c", 'a'+i)) }, 1},
		"error as text":  {func(l *slog.Logger, i int) { l.Error("x", "error", strings.Repeat("a", i)) }, 1},
		"count":          {func(l *slog.Logger, i int) { l.Warn("x", "rows", i) }, 1},
		"time":           {func(l *slog.Logger, i int) { l.Warn("x", "since", time.Unix(int64(i), 0)) }, 1},
		"port":           {func(l *slog.Logger, i int) { plain(l).Printf("http: from 10.0.0.1:%d: EOF", 1000*i) }, 1},
		"message":        {func(l *slog.Logger, i int) { plain(l).Print(strings.Repeat("a", i+1)) }, 10},
		"level":          {func(l *slog.Logger, i int) { l.Log(context.Background(), slog.LevelWarn+slog.Level(4*(i%2)), "x") }, 2},
		"service":        {func(l *slog.Logger, i int) { l.Warn("x", "service", fmt.Sprint(i)) }, 10},
		"word":           {func(l *slog.Logger, i int) { l.Warn("x", "state", names(fmt.Sprint(i))) }, 10},
		"partition":      {func(l *slog.Logger, i int) { l.Warn("x", "partition", int32(i)) }, 10},
		"logger":         {func(l *slog.Logger, i int) { l.With("service", fmt.Sprint(i)).Warn("x") }, 10},
		"logger's own":   {func(l *slog.Logger, _ int) { l.With("service", "order").Warn("x") }, 1},
		"group":          {func(l *slog.Logger, i int) { l.WithGroup(fmt.Sprint(i)).Warn("x", "a", "b") }, 10},
		"inner group":    {func(l *slog.Logger, i int) { l.Warn("x", slog.Group("g", "topic", fmt.Sprint(i))) }, 10},
		"single things":  {func(l *slog.Logger, i int) { l.Warn("x", "order_id", fmt.Sprint(i)) }, 10},
		"with their own": {func(l *slog.Logger, i int) { l.With("id", fmt.Sprint(i)).Warn("x", "err", errors.New("e")) }, 10},
		"information":    {func(l *slog.Logger, _ int) { l.Info("x") }, 10},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, h, out := folded()
				for i := range 10 {
					c.log(log, i)
				}
				if got := len(out.lines(t)); got != c.logged {
					t.Errorf("%d of 10 lines were logged, want %d", got, c.logged)
				}
				h.Flush()
				if sums := len(out.lines(t)); (sums > 0) != (c.logged < 10) {
					t.Errorf("%d sums were logged", sums)
				}
			})
		})
	}
}

// Lines with ids do not flood the log, either.
func TestAFloodIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, h, out := folded()
		for i := range 5000 {
			log.Warn("request failed", "request_id", fmt.Sprint(i))
		}
		if n := len(out.lines(t)); n != maxPerRequest {
			t.Errorf("%d lines of requests", n)
		}
		for i := range 5000 {
			log.Warn("payment outcome unknown", "payment_id", fmt.Sprint(i), "request_id", "x")
		}
		if n := len(out.lines(t)); n != maxPerID {
			t.Errorf("%d lines of payments", n)
		}
		h.Flush()
		out.want(t, "WARN payment outcome unknown ×4900", "WARN request failed ×4990")
	})
}

// The number of kinds is limited, and no line is lost by that.
func TestKindsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, h, out := folded()
		for range 2 {
			for i := range 2 * maxKinds {
				log.Warn("x", "topic", fmt.Sprint(i))
			}
		}
		if n := len(h.kinds.open); n != maxKinds {
			t.Errorf("%d kinds are remembered", n)
		}
		if n := len(out.lines(t)); n != 3*maxKinds {
			t.Errorf("%d lines", n)
		}
		time.Sleep(span)
		synctest.Wait()
		if n := len(out.lines(t)); n != maxKinds {
			t.Errorf("%d sums", n)
		}
	})
}

// Handlers are used by many goroutines at a time.
func TestConcurrentUse(t *testing.T) {
	log, h, out := folded()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for range 200 {
				log.With("service", fmt.Sprint(i%2)).Warn("x")
			}
		})
	}
	all.Go(h.Flush)
	all.Wait()
	h.Flush()
	n := 0
	for _, line := range out.lines(t) {
		var repeated int
		if _, err := fmt.Sscanf(line, "WARN x ×%d", &repeated); err != nil {
			repeated = 1
		}
		n += repeated
	}
	if n != 8*200 {
		t.Errorf("%d lines are accounted for", n)
	}
}

// A line that passes allocates nothing.
func TestInformationIsFree(t *testing.T) {
	h := Fold(slog.DiscardHandler)
	r := slog.NewRecord(time.Now(), slog.LevelInfo, "Event published", 0)
	r.AddAttrs(slog.String("event_id", "1"), slog.String("topic", "order-events"))
	if n := testing.AllocsPerRun(100, func() { _ = h.Handle(t.Context(), r) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
