package outbox

import "pizzaflow/sqldb"

// CommitElsewhere offers e to the relay of an earlier term of o, as number seq: as if
// it was committed on a server whose last commits its successor never received.
func CommitElsewhere(o *Outbox, seq int64, e Event) {
	tx := &Tx{}
	tx.Add(1, e)
	tx.rows[0].Seq, tx.rows[0].CreatedAt = seq, sqldb.Now()
	o.local.Offer(o.local.Begin(), tx.rows)
	o.local.End()
}
