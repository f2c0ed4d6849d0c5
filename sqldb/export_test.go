package sqldb

// Queued is the number of calls that wait for a flush.
func Queued[T, R any](g *Group[T, R]) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.queue)
}

// Flushers is the number of flushers at work.
func Flushers[T, R any](g *Group[T, R]) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.running
}

// Taken is how many items the group's flushers have.
func Taken[T, R any](g *Group[T, R]) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.taken
}

// Many is what PostgreSQL gets for many rows.
func (b Batch) Many() string { return b.many() }
