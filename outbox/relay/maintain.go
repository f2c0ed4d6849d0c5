package relay

import (
	"context"
	"math/rand/v2"
	"time"

	"pizzaflow/internal/retry"
	"pizzaflow/sqldb"
)

// How often published ranges are folded and old events deleted, give or take a
// fifth.
const (
	foldEvery  = time.Minute
	pruneEvery = time.Hour
)

// maintain folds published ranges and deletes old events until ctx ends.
func (t *term) maintain(ctx context.Context) {
	t.foldedUpTo = min(t.foldedUpTo, t.lowWatermark()+1)               // a rewind has new ranges stored above the low watermark
	pruneAt := time.Now().Add(pruneEvery*4/5 + rand.N(pruneEvery*2/5)) //nolint:gosec // jitter
	for retry.Sleep(ctx, foldEvery*4/5+rand.N(foldEvery*2/5)) {        //nolint:gosec // jitter
		next, err := t.fold(ctx, t.foldedUpTo, sqldb.Now())
		if t.foldedUpTo = next; err != nil && ctx.Err() == nil {
			t.cfg.Log.Warn("folding published ranges failed", "service", t.cfg.Service, "err", err)
		}
		if time.Now().Before(pruneAt) {
			continue
		}
		pruneAt = time.Now().Add(pruneEvery*4/5 + rand.N(pruneEvery*2/5)) //nolint:gosec // jitter
		n, err := t.pruneOnce(ctx, sqldb.Now().Add(-t.cfg.Retention))
		if err != nil && ctx.Err() == nil {
			t.cfg.Log.Warn("deleting old events failed", "service", t.cfg.Service, "err", err)
		}
		if n > 0 {
			t.cfg.Log.Info("old events deleted", "service", t.cfg.Service, "events", n)
		}
	}
}
