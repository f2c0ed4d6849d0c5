package outbox

import (
	"context"
	"database/sql"
	"fmt"

	"pizzaflow/sqldb"
)

// numbered are the tables whose rows the database numbers, with the highest
// number that it has ever given as far as the tables tell. An event whose number
// is not above the low watermark is never read by the relay.
var numbered = []struct{ table, column, highest string }{
	{"outbox_events", "seq", `
		SELECT MAX(n) FROM (
			SELECT floor AS n FROM outbox_lease
			UNION ALL SELECT MAX(seq) FROM outbox_events
			UNION ALL SELECT MAX(seq) FROM outbox_blocked
			UNION ALL SELECT last_seq FROM (SELECT last_seq FROM outbox_published ORDER BY first_seq DESC LIMIT 1) l) given`},
	{"parked_records", "seq", `SELECT MAX(seq) FROM parked_records`},
	{"operator_actions", "id", `SELECT MAX(id) FROM operator_actions`},
}

// RepairNumbering makes sure that the database gives no number a second time.
// A dump that was restored table by table, or a replica that was promoted, has
// the rows and a sequence that begins anew: its next events would stand below
// what the relay has done with, and be published by nobody. It returns the
// tables whose sequence was moved past the rows. It must be called after the
// migrations and before anything is written; a role that may not change a
// sequence gets an error.
func RepairNumbering(ctx context.Context, db *sqldb.DB) (moved []string, err error) {
	for _, n := range numbered {
		err := db.Tx(ctx, func(tx *sql.Tx) error {
			var highest sql.NullInt64
			if err := tx.QueryRowContext(ctx, n.highest).Scan(&highest); err != nil {
				return err
			}
			behind, err := db.MoveSequence(ctx, tx, n.table, n.column, highest.Int64)
			if behind {
				moved = append(moved, n.table)
			}
			return err
		})
		if err != nil {
			return moved, fmt.Errorf("compare the sequence of %s with its rows: %w", n.table, err)
		}
	}
	return moved, nil
}
