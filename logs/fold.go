// Package logs keeps a log readable while something goes wrong again and again.
package logs

import (
	"context"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
)

const (
	span          = time.Minute // how long lines are counted before their sum is logged
	maxPerID      = 100         // lines of a kind with an id that are logged in a span
	maxPerRequest = 10          // the same for a request's id, which the access log has, too
	maxKinds      = 1000        // kinds in memory; lines of further kinds are all logged
)

// Fold returns a handler that logs repeated lines once and then their count once a
// minute. It holds back a warning or an error if one of the same kind was logged within
// the last minute. At the end of the minute it logs the last of the lines held back,
// with "repeated", their number, and "last_at", its time, and the next minute begins.
// Lines below warnings pass.
//
// Lines are of the same kind if they have the same level, message and identity: the
// strings and flags among the attributes (service, table, topic, from, to), and the
// partition. The texts of errors (err, error, detail, stack), all other numbers and
// digits in the message do not count. Lines with an id (id, order_id, …) are about
// different things and worth reading one by one: a hundred a minute of a kind are
// logged, and ten if the id is a request's, which is in the access log.
//
// Call [Handler.Flush] before the process ends.
func Fold(next slog.Handler) *Handler {
	return &Handler{next: next, kinds: &kinds{open: map[string]*kind{}}}
}

// A Handler is a slog.Handler that folds repeated lines; see [Fold].
type Handler struct {
	next   slog.Handler
	kinds  *kinds
	about  identity // the attributes of With
	groups string   // the names of WithGroup, each with a dot
}

// Enabled implements slog.Handler.
func (h *Handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.next = h.next.WithAttrs(attrs)
	for _, a := range attrs {
		c.about.add(h.groups, a)
	}
	return &c
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	c := *h
	c.next = h.next.WithGroup(name)
	if name != "" {
		c.groups += name + "."
	}
	return &c
}

// Handle logs the line or holds it back.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn && h.kinds.holdBack(h, r) {
		return nil
	}
	return h.next.Handle(ctx, r)
}

// Flush logs the sums of all lines held back and drops all kinds.
func (h *Handler) Flush() {
	h.kinds.mu.Lock()
	open := h.kinds.open
	h.kinds.open = map[string]*kind{}
	var sums []sum
	for _, key := range slices.Sorted(maps.Keys(open)) {
		open[key].timer.Stop()
		sums = append(sums, open[key].takeSum())
	}
	h.kinds.mu.Unlock()
	for _, s := range sums {
		s.log()
	}
}

// kinds are the kinds of lines of a Fold and of all handlers derived from it.
type kinds struct {
	mu   sync.Mutex
	open map[string]*kind
}

// A kind counts lines of the same kind within a span.
type kind struct {
	logged int
	sum    sum
	timer  *time.Timer
}

// A sum is the number of lines held back, and the last of them.
type sum struct {
	held int
	last slog.Record
	to   slog.Handler
}

// holdBack counts the line and reports whether it is held back.
func (k *kinds) holdBack(h *Handler, r slog.Record) bool {
	about := h.about
	r.Attrs(func(a slog.Attr) bool {
		about.add(h.groups, a)
		return true
	})
	key := r.Level.String() + "\x00" + withoutDigits(r.Message) + about.key
	k.mu.Lock()
	defer k.mu.Unlock()
	seen := k.open[key]
	if seen == nil {
		if len(k.open) >= maxKinds {
			return false
		}
		seen = new(kind)
		k.open[key] = seen
		seen.timer = time.AfterFunc(span, func() { k.endSpan(key, seen) })
	}
	if seen.logged < max(1, about.limit) {
		seen.logged++
		return false
	}
	seen.sum.held++
	seen.sum.last, seen.sum.to = r.Clone(), h.next
	return true
}

// endSpan logs the sum of a kind and begins its next span. A kind without a sum is
// dropped.
func (k *kinds) endSpan(key string, seen *kind) {
	k.mu.Lock()
	if k.open[key] != seen { // flushed meanwhile
		k.mu.Unlock()
		return
	}
	s := seen.takeSum()
	if s.held == 0 {
		delete(k.open, key)
	} else {
		seen.logged = 1 // the sum
		seen.timer.Reset(span)
	}
	k.mu.Unlock()
	s.log()
}

func (k *kind) takeSum() sum {
	s := k.sum
	k.sum = sum{}
	return s
}

// log logs the sum, unless no line was held back.
func (s sum) log() {
	if s.held == 0 {
		return
	}
	r := s.last
	r.AddAttrs(slog.Int("repeated", s.held), slog.Time("last_at", r.Time))
	r.Time = time.Now()
	_ = s.to.Handle(context.Background(), r) // an error of the log cannot be logged
}

// identity is the part of a line's attributes that makes its kind.
type identity struct {
	key   string
	limit int // how many lines of the kind are logged in a span
}

func (b *identity) add(groups string, a slog.Attr) {
	v := a.Value.Resolve()
	switch {
	case v.Kind() == slog.KindGroup:
		if a.Key != "" {
			groups += a.Key + "."
		}
		for _, inner := range v.Group() {
			b.add(groups, inner)
		}
	case a.Key == "request_id":
		b.limit = max(b.limit, maxPerRequest)
	case a.Key == "id" || strings.HasSuffix(a.Key, "_id"):
		b.limit = maxPerID
	case identifies(a.Key, v):
		b.key += "\x00" + groups + a.Key + "=" + v.String()
	}
}

// identifies reports whether an attribute is part of the identity.
func identifies(name string, v slog.Value) bool {
	switch v.Kind() {
	case slog.KindString:
		return !slices.Contains([]string{"err", "error", "detail", "stack"}, name)
	case slog.KindBool:
		return true
	case slog.KindAny:
		return reflect.TypeOf(v.Any()) != nil && reflect.TypeOf(v.Any()).Kind() == reflect.String && !isError(v.Any())
	case slog.KindInt64, slog.KindUint64:
		return name == "partition"
	}
	return false
}

func isError(v any) bool { _, is := v.(error); return is }

// withoutDigits replaces each number of a message by #: the messages of net/http have
// the peer's address and port.
func withoutDigits(s string) string {
	if !strings.ContainsFunc(s, unicode.IsDigit) {
		return s
	}
	var b strings.Builder
	number := false
	for _, r := range s {
		digit := unicode.IsDigit(r)
		if !digit {
			b.WriteRune(r)
		} else if !number {
			b.WriteByte('#')
		}
		number = digit
	}
	return b.String()
}
