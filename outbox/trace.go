package outbox

import "context"

type traceKey struct{}

// WithTraceparent makes ctx carry a W3C traceparent, which goes into the
// headers of the events written under it. A handler's context carries that of
// the record it handles.
func WithTraceparent(ctx context.Context, traceparent string) context.Context {
	return context.WithValue(ctx, traceKey{}, traceparent)
}

// Traceparent is the traceparent that ctx carries, "" without one.
func Traceparent(ctx context.Context) string {
	tp, _ := ctx.Value(traceKey{}).(string)
	return tp
}
