package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/pprof/profile"
)

// An effort is processor time by who spent it.
type effort struct{ ours, postgres, broker, load time.Duration }

func (e effort) sum() time.Duration { return e.ours + e.postgres + e.broker + e.load }

// an is the effort for one of so many, in microseconds, and how many a second
// all cores of this machine could do at that.
func (e effort) an(n int) (text string, perSecond float64) {
	us := func(d time.Duration) string { return group(float64(d.Microseconds()) / float64(n)) }
	return fmt.Sprintf("%s + %s + %s + %s", us(e.ours), us(e.postgres), us(e.broker), us(e.load)),
		float64(runtime.NumCPU()) * float64(n) / e.sum().Seconds()
}

// spend begins to watch who spends processor time: a process of ours, the
// servers, and this process, which is the load where it is not part of ours.
func (b *bench) spend(ours, broker int) (spent func() (effort, error), err error) {
	look := func() (e effort, err error) {
		var errs [3]error
		e.ours, errs[0] = processTime(ours)
		e.postgres, errs[1] = processTime(b.pgPID)
		e.broker, errs[2] = processTime(broker)
		var self syscall.Rusage
		err = errors.Join(append(errs[:], syscall.Getrusage(syscall.RUSAGE_SELF, &self))...)
		e.load = time.Duration(self.Utime.Nano() + self.Stime.Nano())
		return e, err
	}
	before, err := look()
	return func() (effort, error) {
		e, err := look()
		return effort{e.ours - before.ours, e.postgres - before.postgres, e.broker - before.broker, e.load - before.load}, err
	}, err
}

// fields are what processor time is spent on: a sample of a profile belongs to
// the first of which one of its functions is part.
var fields = []struct {
	name string
	part []string
}{
	{"garbage collection", []string{"runtime.gcBgMarkWorker", "runtime.gcAssistAlloc", "runtime.bgsweep", "runtime.bgscavenge"}},
	{"the sandbox: provider, mail and SMS server", []string{"pizzaflow/sandbox.", "emersion/go-smtp."}},
	{"the embedded broker", []string{"franz-go/pkg/kfake."}},
	{"Kafka client", []string{"franz-go/pkg/kgo.", "franz-go/pkg/kmsg."}},
	{"SQLite", []string{"modernc.org/sqlite"}},
	{"PostgreSQL client", []string{"jackc/pgx"}},
	{"database/sql, group commit", []string{"database/sql.", "pizzaflow/sqldb."}},
	{"JSON", []string{"encoding/json."}},
	{"templates", []string{"html/template.", "text/template."}},
	{"sending mail", []string{"wneessen/go-mail", "net/smtp."}},
	{"logging", []string{"log/slog."}},
	{"order service", []string{"pizzaflow/order."}},
	{"payment service", []string{"pizzaflow/payment."}},
	{"notification service", []string{"pizzaflow/notification."}},
	{"outbox library", []string{"pizzaflow/outbox."}},
	{"HTTP", []string{"net/http.", "pizzaflow/web."}},
	{"the clients", []string{"main."}},
	{"scheduler and the rest", []string{""}},
}

// fieldTable tells what n orders' processor time went to.
func (r *report) fieldTable(of string, profiled []byte, n int) error {
	p, err := profile.Parse(bytes.NewReader(profiled))
	if err != nil {
		return fmt.Errorf("read the profile: %w", err)
	}
	spent, inSystem := map[string]int64{}, map[string]int64{}
	var total int64
	for _, s := range p.Sample {
		name := fieldOf(s)
		spent[name] += s.Value[1]
		total += s.Value[1]
		if leaf := functions(s.Location[:1]); strings.Contains(leaf, "Syscall6") {
			inSystem[name] += s.Value[1]
		}
	}
	rows := [][]string{{of, "µs an order", "of that in the kernel", "share"}}
	add := func(name string, spent, inSystem int64) {
		us := func(ns int64) string { return group(float64(ns) / 1e3 / float64(n)) }
		rows = append(rows, []string{name, us(spent), us(inSystem), fmt.Sprintf("%.0f %%", 100*float64(spent)/float64(max(1, total)))})
	}
	names := make([]string, 0, len(spent))
	var system int64
	for name := range spent {
		names, system = append(names, name), system+inSystem[name]
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(spent[b], spent[a]) })
	for _, name := range names {
		add(name, spent[name], inSystem[name])
	}
	add("**all**", total, system)
	r.table(rows...)
	return nil
}

func fieldOf(s *profile.Sample) string {
	stack := functions(s.Location)
	for _, f := range fields {
		if slices.ContainsFunc(f.part, func(part string) bool { return strings.Contains(stack, part) }) {
			return f.name
		}
	}
	return ""
}

// functions are the names of a stack's functions, a line each.
func functions(stack []*profile.Location) string {
	var b strings.Builder
	for _, at := range stack {
		for _, line := range at.Line {
			b.WriteString(line.Function.Name)
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// fetchProfile takes a profile of a running binary.
func fetchProfile(ctx context.Context, admin string, length time.Duration) ([]byte, error) {
	status, text, err := web(admin, 1)(ctx, http.MethodGet, fmt.Sprintf("/debug/pprof/profile?seconds=%d", max(1, int(length.Seconds()))), nil)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("answer %d: %.200s", status, text)
	}
	if err != nil {
		return nil, fmt.Errorf("take a profile: %w", err)
	}
	return text, nil
}

// profileTo profiles this process into a file until stopped; without a name it
// does nothing.
func profileTo(name string) (stop func() error, err error) {
	if name == "" {
		return func() error { return nil }, nil
	}
	f, err := os.Create(name)
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(fmt.Errorf("profile: %w", err), f.Close())
	}
	return func() error {
		pprof.StopCPUProfile()
		return f.Close()
	}, nil
}
