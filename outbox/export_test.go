package outbox

import "pizzaflow/sqldb"

// CommitElsewhere has o believe that e was committed while its relay led in an
// earlier term, as number seq: on a server whose last commits its successor
// never received.
func CommitElsewhere(o *Outbox, seq int64, e Event) {
	tx := &Tx{}
	tx.Add(1, e)
	tx.rows[0].Seq, tx.rows[0].CreatedAt = seq, sqldb.Now()
	o.local.Offer(o.local.Begin(), tx.rows)
	o.local.End()
}
