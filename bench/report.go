package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// A report is what the run has found so far.
type report struct {
	about  string
	body   strings.Builder
	faults []string
	drains []drained
	times  []timed
	goals  map[string]string // what was measured, by the goal's key
	met    map[string]bool
}

type drained struct {
	where string
	name  string
	drain
}

type timed struct {
	where, name string
	rate        int
	missing     int // had not come when the patience was over
	lags
}

func (r *report) section(title string) { fmt.Fprintf(&r.body, "\n## %s\n", title) }

func (r *report) note(format string, args ...any) {
	fmt.Fprintf(&r.body, "\n"+format+"\n", args...)
}

func (r *report) fail(part string, err error) {
	r.faults = append(r.faults, part)
	r.body.WriteString("\n**Not all of this could be measured:**\n\n")
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(&r.body, "- %s\n", strings.TrimSpace(line))
	}
}

func (r *report) drained(where string, c contender, d drain) {
	r.drains = append(r.drains, drained{where, c.name, d})
}

func (r *report) timed(where, name string, rate, missing int, l lags) {
	r.times = append(r.times, timed{where, name, rate, missing, l})
}

// table adds a table: the first row is its head.
func (r *report) table(rows ...[]string) {
	r.body.WriteString("\n" + markdown(rows))
}

func markdown(rows [][]string) string {
	var b strings.Builder
	for n, row := range rows {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
		if n == 0 {
			b.WriteString(strings.Repeat("|---", len(row)) + "|\n")
		}
	}
	return b.String()
}

// reach notes what was measured for a goal, and whether it must be so.
func (r *report) reach(goal string, met bool, format string, args ...any) {
	if r.goals == nil {
		r.goals, r.met = map[string]string{}, map[string]bool{}
	}
	r.goals[goal], r.met[goal] = fmt.Sprintf(format, args...), met
}

// publish prints the report and writes it to its file.
func (b *bench) publish(out string, stdout io.Writer) error {
	text := b.report.render(b)
	if _, err := io.WriteString(stdout, text); err != nil {
		return fmt.Errorf("print report: %w", err)
	}
	if out == "" || b.report.about == "" {
		return nil
	}
	if err := os.WriteFile(filepath.Join(b.root, out), []byte(text), 0o644); err != nil { //nolint:gosec // for everybody to read
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func (r *report) render(b *bench) string {
	var t strings.Builder
	t.WriteString("# Benchmarks\n\nWritten by `make bench`; do not edit. Everything ran on one machine, one after the other: " +
		"services, database, broker and load share its processors, so ratios tell more than rates.\n")
	t.WriteString(r.about)
	if len(r.faults) > 0 {
		fmt.Fprintf(&t, "\n**This run is incomplete: see below what failed of %s.**\n", strings.Join(r.faults, ", "))
	}
	t.WriteString("\n## What must be reached\n\n" + markdown(r.goalRows()))
	t.WriteString(r.body.String())
	fmt.Fprintf(&t, "\n## Not measured\n\n%s\n", notMeasured)
	fmt.Fprintf(&t, "\nThe run took %s.\n", time.Since(b.began).Round(time.Second))
	return t.String()
}

const notMeasured = `- More than one machine, more than one Kafka broker, a network between them.
- Power loss: what is synced is what the disk says is synced.
- Go peers that the module proxy does not have: nikolayk812/pgx-outbox, oagudo/outbox, obsidiandynamics/goharvest,
  gokern/outboxer, open-outbox/relay, gopherex/pg-outbox.
- Debezium inside a Kafka Connect cluster; its engine runs alone here, with Kafka's own producer behind it.`

// describe says on what, with what and how it was measured.
func (b *bench) describe(ctx context.Context) string {
	var t strings.Builder
	line := func(what, is string) { fmt.Fprintf(&t, "| %s | %s |\n", what, is) }
	t.WriteString("\n|  |  |\n|---|---|\n")
	line("date", time.Now().UTC().Format("2006-01-02 15:04 UTC"))
	line("commit", b.git(ctx, "describe", "--always", "--dirty", "--abbrev=12"))
	line("size", b.sizeName)
	line("machine", fmt.Sprintf("%d cores, %s, %s", runtime.NumCPU(), cpuModel(), totalMemory()))
	line("system", "Linux "+strings.TrimSpace(firstOf("/proc/sys/kernel/osrelease")))
	line("Go", fmt.Sprintf("%s, GOGC=%d, as the binary sets it", runtime.Version(), gcPercent))
	line("PostgreSQL", b.postgresVersion(ctx)+", `"+pgOptions+"`, otherwise as it comes")
	line("Apache Kafka", b.kafkaVersion()+", one broker, 12 partitions, acks=all")
	line("embedded broker", "this project's, synced writes, 3 partitions")
	line("events", fmt.Sprintf("%d bytes of JSON, %s aggregates, one event in five of 100 busy ones", len(item{12345, 1}.payload()), group(float64(b.size.aggregates))))
	return t.String()
}

func (b *bench) git(ctx context.Context, args ...string) string {
	cmd := exec.CommandContext(ctx, "git", args...) //nolint:gosec // fixed words
	cmd.Dir = b.root
	out, err := cmd.Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func (b *bench) postgresVersion(ctx context.Context) string {
	conn, err := pgx.Connect(ctx, b.postgres)
	if err != nil {
		return "unknown"
	}
	defer func() { _ = conn.Close(ctx) }()
	var v string
	if err := conn.QueryRow(ctx, `SHOW server_version`).Scan(&v); err != nil {
		return "unknown"
	}
	return v
}

// kafkaVersion reads the version off the jars that its process has open.
func (b *bench) kafkaVersion() string {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", b.kafkaPID))
	if err != nil {
		return "unknown"
	}
	for _, f := range files {
		jar, err := os.Readlink(f)
		if v, is := strings.CutPrefix(filepath.Base(jar), "kafka-server-"); err == nil && is && v != "" && v[0] >= '0' && v[0] <= '9' {
			return strings.TrimSuffix(v, ".jar")
		}
	}
	return "unknown"
}

func cpuModel() string {
	for line := range strings.Lines(firstOf("/proc/cpuinfo")) {
		if strings.HasPrefix(line, "model name") {
			_, model, _ := strings.Cut(line, ":")
			return strings.TrimSpace(model)
		}
	}
	return runtime.GOARCH
}

func totalMemory() string {
	for line := range strings.Lines(firstOf("/proc/meminfo")) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "MemTotal:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err == nil {
				return fmt.Sprintf("%d GiB", (kib+1<<19)>>20)
			}
		}
	}
	return "unknown memory"
}

// firstOf is the beginning of a file, or nothing.
func firstOf(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }() // nothing was written
	text, err := io.ReadAll(io.LimitReader(f, 1<<16))
	if err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	return string(text)
}

// median of an odd number of values is the middle one, of an even number the
// mean of the two.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// group writes a whole number with its thousands apart.
func group(v float64) string {
	s := strconv.FormatInt(int64(v+0.5), 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func msOf(ns float64) string { return ms(time.Duration(ns)) }

func ms(d time.Duration) string {
	v := float64(d) / 1e6
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f ms", v)
	case v >= 10:
		return fmt.Sprintf("%.1f ms", v)
	}
	return fmt.Sprintf("%.2f ms", v)
}

func mib(n int64) string { return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20)) }

func times(ratio float64) string {
	switch {
	case ratio == 0:
		return "–"
	case ratio >= 100:
		return fmt.Sprintf("%.0f ×", ratio)
	case ratio >= 10:
		return fmt.Sprintf("%.1f ×", ratio)
	}
	return fmt.Sprintf("%.2f ×", ratio)
}
