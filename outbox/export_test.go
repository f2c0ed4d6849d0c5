package outbox

import "pizzaflow/sqldb"

// OnCrashPoint has fn called at each crash point of this process. It must be
// set before anything else of the package is used.
func OnCrashPoint(fn func(point string)) { crash = fn }

// CommitElsewhere has o believe that e was committed while its relay led in an
// earlier term, as number seq: on a server whose last commits its successor
// never received.
func CommitElsewhere(o *Outbox, seq int64, e Event) {
	tx := &Tx{}
	tx.Add(1, e)
	tx.rows[0].seq, tx.rows[0].createdAt = seq, sqldb.Now()
	o.local.offer(o.local.begin(), tx.rows)
	o.local.end()
}
