package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

func TestMain(m *testing.M) {
	// A role is started by running this program again, which here is the test.
	if len(os.Args) > 1 && os.Args[1] == "role" {
		main()
	}
	os.Exit(m.Run())
}

// TestEveryPart runs the whole program at a tiny size on servers of its own.
func TestEveryPart(t *testing.T) {
	required := strings.Split(os.Getenv("PIZZA_TEST_REQUIRE"), ",")
	if !slices.Contains(required, "postgres") || !slices.Contains(required, "kafka") {
		t.Skip("starts PostgreSQL and Kafka only when PIZZA_TEST_REQUIRE names postgres and kafka")
	}
	t.Setenv("TMPDIR", "/var/tmp") // PostgreSQL's user must reach it
	before := folders(t)
	var report, talk bytes.Buffer
	if code := run(t.Context(), []string{"-root", "..", "-size", "tiny", "-out", ""}, &report, &talk); code != 0 {
		t.Fatalf("exit %d\n%s\n%s", code, talk.String(), report.String())
	}
	for _, g := range goals() {
		if g.key != "drain debezium" && strings.Contains(report.String(), "| "+g.what+" | "+g.on+" | "+g.must+" | "+g.aim+" | not in this run") {
			t.Errorf("%s on %s was not measured\n%s", g.what, g.on, talk.String())
		}
	}
	for _, name := range []string{"Watermill forwarder, tuned", "SKIP LOCKED", "one transaction per record", "ours, OnBatch", "ours, written by another process", "3"} {
		if !strings.Contains(report.String(), "| "+name) {
			t.Errorf("the report has no row for %q\n%s", name, report.String())
		}
	}
	if after := folders(t); after != before {
		t.Errorf("folders are left behind: %d, before %d", after, before)
	}
}

func folders(t *testing.T) int {
	t.Helper()
	left, err := filepath.Glob("/var/tmp/pizzaflow-bench-*")
	if err != nil {
		t.Fatal(err)
	}
	return len(left)
}

func TestUnknownNamesAreRefused(t *testing.T) {
	for _, args := range [][]string{{"-run", "relay,oven"}, {"-size", "huge"}, {"-nonsense"}} {
		var out, talk bytes.Buffer
		if code := run(t.Context(), args, &out, &talk); code != 2 || talk.Len() == 0 || out.Len() != 0 {
			t.Errorf("%v: exit %d, stdout %q, stderr %q", args, code, out.String(), talk.String())
		}
	}
}

func TestVerdict(t *testing.T) {
	record := func(partition int32, i item) *kgo.Record {
		return &kgo.Record{Partition: partition, Value: []byte(i.payload())}
	}
	good := []*kgo.Record{record(0, item{0, 1}), record(1, item{1, 1}), record(0, item{0, 2}), record(0, item{0, 1}), record(0, item{0, 3})}
	for _, c := range []struct {
		name    string
		records []*kgo.Record
		want    int
		fault   string
	}{
		{"all came, one of them again", good, 4, ""},
		{"one is missing at the end", good[:4], 4, "1 of 4 events are missing"},
		{"a part is as good as it goes", good[:3], 0, ""},
		{"one is missing in the middle", []*kgo.Record{record(0, item{0, 1}), record(0, item{0, 3})}, 0, "1 events came before their predecessor"},
		{"two have changed places", []*kgo.Record{record(0, item{0, 2}), record(0, item{0, 1})}, 0, "1 events came before their predecessor"},
		{"one is in another partition", []*kgo.Record{record(0, item{0, 1}), record(1, item{0, 2})}, 0, "1 in another partition"},
		{"not one of ours", []*kgo.Record{{Value: []byte(`{"order_id": "1"}`)}}, 0, "without a mark"},
	} {
		v := newVerdict(2)
		for _, r := range c.records {
			v.look(r)
		}
		switch err := v.fault(c.want); {
		case c.fault == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.fault != "" && (err == nil || !strings.Contains(err.Error(), c.fault)):
			t.Errorf("%s: %v, want %q", c.name, err, c.fault)
		}
	}
}

func TestMarkIsFoundHoweverItIsWritten(t *testing.T) {
	for _, text := range []string{item{7, 12}.payload(), `{"a":1,"mark":"7.12"}`, `{"event_data":{"mark" : "x","mark":  "7.12"}}`} {
		if got, err := markOf([]byte(text)); err != nil || got != (item{7, 12}) {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	if n := len(item{49_999, 20}.payload()); n < 400 || n > 520 {
		t.Errorf("an event has %d bytes, want 400 to 520", n)
	}
}

func TestBacklogHasNoGaps(t *testing.T) {
	items := backlog(10_000, 300)
	last := make([]int, 300)
	for _, i := range items {
		if i.version != last[i.aggregate]+1 {
			t.Fatalf("version %d of aggregate %d follows %d", i.version, i.aggregate, last[i.aggregate])
		}
		last[i.aggregate] = i.version
	}
	if !slices.Equal(items, backlog(10_000, 300)) {
		t.Error("it is not the same each time")
	}
}

func TestFigures(t *testing.T) {
	if got := median([]float64{9, 1, 5}); got != 5 {
		t.Errorf("median of three: %v", got)
	}
	if got := median([]float64{4, 2}); got != 3 {
		t.Errorf("median of two: %v", got)
	}
	// each round against its own, whatever the machine did meanwhile
	if got := ratio([]float64{100, 10, 60}, []float64{50, 5, 20}); got != 2 {
		t.Errorf("ratio: %v", got)
	}
	if got := ratio([]float64{100, 300}, []float64{50}); got != 4 {
		t.Errorf("ratio of unequal rounds: %v", got)
	}
	for v, want := range map[float64]string{0: "0", 999.6: "1,000", 1234567: "1,234,567"} {
		if got := group(v); got != want {
			t.Errorf("group(%v) = %s, want %s", v, got, want)
		}
	}
	l := lags{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	if l.at(0.5) != 6 || l.at(0.99) != 10 || l.at(1) != 10 || (lags{}).at(0.5) != 0 {
		t.Errorf("quantiles: %d, %d, %d", l.at(0.5), l.at(0.99), l.at(1))
	}
}

// TestOpenLoopDoesNotWait is what keeps a slow answer from hiding the others
// that would have been sent meanwhile.
func TestOpenLoopDoesNotWait(t *testing.T) {
	began := time.Now()
	blocked := make(chan struct{})
	due := make(chan time.Duration, 100)
	openLoop(t.Context(), 1000, 100, 100, func(n int, at time.Time) {
		if n == 99 {
			close(blocked) // everyone before waits for the last
		}
		<-blocked
		due <- at.Sub(began)
	})
	close(due)
	var latest time.Duration
	for d := range due {
		latest = max(latest, d)
	}
	if latest < 98*time.Millisecond || latest > 5*time.Second {
		t.Errorf("the last of 100 at 1,000/s was due after %s", latest)
	}
}

func TestProcessorTimeCountsDescendants(t *testing.T) {
	mine, err := processTime(os.Getpid())
	if os.IsNotExist(err) || mine == 0 && err == nil && !isLinux() {
		t.Skip("there is no /proc here")
	}
	if err != nil {
		t.Fatal(err)
	}
	worked := markdown([][]string{{"a"}})
	for deadline := time.Now().Add(10 * time.Second); ; {
		more, err := processTime(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if more-mine >= 50*time.Millisecond {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("10 s of work count as %s", more-mine)
		}
		for n := range 100_000 {
			worked = worked[:8] + group(float64(n))
		}
	}
	if peak, err := peakMemory(os.Getpid()); err != nil || peak < 1<<20 {
		t.Errorf("peak memory %d: %v", peak, err)
	}
}

func isLinux() bool {
	_, err := os.Stat("/proc/self/stat")
	return err == nil
}
