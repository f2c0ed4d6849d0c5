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
	span     = time.Minute // how long lines are counted before their sum is logged
	things   = 100         // lines of a kind that are logged in a span, each about a thing of its own
	requests = 10          // the same about a request, which the access log has as well
	maxKinds = 1000        // kinds that are remembered; lines of further ones are all logged
)

// Fold returns a handler that logs what is repeated once, and then its count once a
// minute: a warning or an error whose like was logged within the last minute is held
// back. When the minute is over the last of those is logged with "repeated", the
// number of lines held back, and "last_at", its time, and the next minute begins. Lines
// below warnings pass.
//
// Lines are alike when level, message and what they are about are the same: strings
// and flags (service, table, topic, from, to), and the partition. What went wrong in
// words (err, error, detail, stack) and all other numbers tell no lines apart, nor do
// digits in the message. Lines with an id (id, order_id, …) are about single things
// and worth reading one by one: of these a hundred a minute are logged, and ten where
// the id is only a request's, which stands in the access log.
//
// Whoever ends the process calls [Handler.Flush] first.
func Fold(next slog.Handler) *Handler {
	return &Handler{next: next, kinds: &kinds{open: map[string]*kind{}}}
}

// A Handler is what Fold returns.
type Handler struct {
	next   slog.Handler
	kinds  *kinds
	about  about  // the attributes of With
	groups string // the names of WithGroup, each with a dot
}

// Enabled reports what the handler below does.
func (h *Handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

// WithAttrs returns a handler of lines that have these attributes, too.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.next = h.next.WithAttrs(attrs)
	for _, a := range attrs {
		c.about.add(h.groups, a)
	}
	return &c
}

// WithGroup returns a handler whose attributes are in a group.
func (h *Handler) WithGroup(name string) slog.Handler {
	c := *h
	c.next = h.next.WithGroup(name)
	if name != "" {
		c.groups += name + "."
	}
	return &c
}

// Handle logs the line, or holds it back.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn && h.kinds.hold(h, r) {
		return nil
	}
	return h.next.Handle(ctx, r)
}

// Flush logs the sums of what is held back and forgets what was logged.
func (h *Handler) Flush() {
	h.kinds.mu.Lock()
	open := h.kinds.open
	h.kinds.open = map[string]*kind{}
	var sums []sum
	for _, key := range slices.Sorted(maps.Keys(open)) {
		open[key].over.Stop()
		sums = append(sums, open[key].take())
	}
	h.kinds.mu.Unlock()
	for _, s := range sums {
		s.log()
	}
}

// kinds are the lines that a Fold and all handlers made from it have seen.
type kinds struct {
	mu   sync.Mutex
	open map[string]*kind
}

// A kind is what is known of lines that are alike, for a span.
type kind struct {
	logged int
	sum    sum
	over   *time.Timer
}

// A sum is a number of lines that were held back, and the last of them.
type sum struct {
	held int
	last slog.Record
	to   slog.Handler
}

// hold reports whether the line is held back.
func (k *kinds) hold(h *Handler, r slog.Record) bool {
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
		seen.over = time.AfterFunc(span, func() { k.next(key, seen) })
	}
	if seen.logged < max(1, about.limit) {
		seen.logged++
		return false
	}
	seen.sum.held++
	seen.sum.last, seen.sum.to = r.Clone(), h.next
	return true
}

// next ends the span of a kind: another begins when there is something to sum up.
func (k *kinds) next(key string, seen *kind) {
	k.mu.Lock()
	if k.open[key] != seen { // flushed meanwhile
		k.mu.Unlock()
		return
	}
	s := seen.take()
	if s.held == 0 {
		delete(k.open, key)
	} else {
		seen.logged = 1 // the sum
		seen.over.Reset(span)
	}
	k.mu.Unlock()
	s.log()
}

func (k *kind) take() sum {
	s := k.sum
	k.sum = sum{}
	return s
}

// log logs the sum, if it is of anything.
func (s sum) log() {
	if s.held == 0 {
		return
	}
	r := s.last
	r.AddAttrs(slog.Int("repeated", s.held), slog.Time("last_at", r.Time))
	r.Time = time.Now()
	_ = s.to.Handle(context.Background(), r) // there is nobody to tell that the log fails
}

// about is what a line is about, as far as it tells lines apart.
type about struct {
	key   string
	limit int // how many of its like are logged in a span
}

func (b *about) add(groups string, a slog.Attr) {
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
		b.limit = max(b.limit, requests)
	case a.Key == "id" || strings.HasSuffix(a.Key, "_id"):
		b.limit = things
	case identifies(a.Key, v):
		b.key += "\x00" + groups + a.Key + "=" + v.String()
	}
}

// identifies reports whether a value says what a line is about, and not what happened.
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

// withoutDigits is a message with one # for each of its numbers: those that net/http
// writes name the peer and its port.
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
