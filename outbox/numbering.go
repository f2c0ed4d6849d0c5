package outbox

import (
	"context"
	"database/sql"
	"fmt"
	"slices"

	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// A numberedTable is a table whose rows the database numbers, with the query for the
// highest number that it has ever given as far as the tables tell.
type numberedTable struct{ table, column, highest string }

// numberedTables are the library's. An event whose number is not above the low
// watermark is never read by the relay.
var numberedTables = []numberedTable{
	{"outbox_events", "seq", `
		SELECT MAX(n) FROM (
			SELECT floor AS n FROM outbox_lease
			UNION ALL SELECT MAX(seq) FROM outbox_events
			UNION ALL SELECT MAX(seq) FROM outbox_blocked
			UNION ALL SELECT last_seq FROM (SELECT last_seq FROM outbox_published ORDER BY first_seq DESC LIMIT 1) l) given`},
	{"parked_records", "seq", `SELECT MAX(seq) FROM parked_records`},
	{"operator_actions", "id", `SELECT MAX(id) FROM operator_actions`},
}

// RepairNumbering makes sure that the database gives no number a second time. A
// dump that was restored table by table, or a replica that was promoted, has the
// rows and a sequence that begins anew: its next events would stand below the low
// watermark, and no relay would publish them.
//
// Call it after the migrations and before the first write. It returns the tables
// whose sequence was moved past the rows. Events that were written before the
// repair, by a process that did not notice that its database was exchanged, get new
// numbers. The error is the database's: that of a role, say, that may not change a
// sequence.
func RepairNumbering(ctx context.Context, db *sqldb.DB) (moved []string, err error) {
	for _, n := range numberedTables {
		var behind []string
		err := db.Tx(ctx, func(tx *sql.Tx) error {
			behind = nil
			var highest sql.NullInt64
			if err := tx.QueryRowContext(ctx, n.highest).Scan(&highest); err != nil {
				return err
			}
			next, err := db.MoveSequence(ctx, tx, n.table, n.column, highest.Int64)
			if err != nil || next == 0 {
				return err
			}
			behind = append(behind, n.table)
			if n.table != "outbox_events" {
				return nil
			}
			return renumber(store.LongStatements(ctx), db.Engine, tx, next)
		})
		moved = append(moved, behind...)
		if err != nil {
			return moved, fmt.Errorf("compare the sequence of %s with its rows: %w", n.table, err)
		}
	}
	return moved, nil
}

// isNumberTaken reports whether err says that the database gave a number that a row
// has already. No statement is at fault: the database was exchanged under this
// process for another whose sequence is behind.
func isNumberTaken(err error) bool {
	constraint := sqldb.ViolatedConstraint(err)
	return slices.ContainsFunc(numberedTables, func(n numberedTable) bool { return constraint == n.table+"_pkey" })
}

// renumberSQL gives an event the next number. SQLite moves its sequence for
// insertions alone, so it is moved by hand.
var renumberSQL = map[sqldb.Engine][]string{
	sqldb.Postgres: {`UPDATE outbox_events SET seq = DEFAULT WHERE seq = $1`},
	sqldb.SQLite: {
		`UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'outbox_events' AND $1 = $1`,
		`UPDATE outbox_events SET seq = (SELECT seq FROM sqlite_sequence WHERE name = 'outbox_events') WHERE seq = $1`,
	},
}

// renumber gives new numbers to the events below next that got theirs since the
// sequence began anew. Such an event stands below the low watermark and yet was
// never published: it is younger than the published range that it stands in. The
// sequence must have been moved past next before.
func renumber(ctx context.Context, engine sqldb.Engine, tx *sql.Tx, next int64) error {
	rows, err := tx.QueryContext(ctx, `
		SELECT seq FROM outbox_events e
		WHERE seq < $1 AND seq <= (SELECT floor FROM outbox_lease WHERE id = 1)
			AND NOT COALESCE((SELECT p.last_seq >= e.seq AND p.published_at >= e.created_at FROM outbox_published p
				WHERE p.first_seq <= e.seq ORDER BY p.first_seq DESC LIMIT 1), false)
			AND NOT EXISTS (SELECT 1 FROM outbox_blocked b WHERE b.seq = e.seq)
		ORDER BY seq`, next)
	low, err := sqldb.ReadAll(rows, err, func(rows *sql.Rows) (seq int64, err error) { return seq, rows.Scan(&seq) }, "find events below the watermark")
	if err != nil {
		return err
	}
	for _, seq := range low { // one after the other: the events of an aggregate stay in their order
		for _, statement := range renumberSQL[engine] {
			if _, err := tx.ExecContext(ctx, statement, seq); err != nil {
				return fmt.Errorf("renumber events: %w", err)
			}
		}
	}
	return nil
}
