package sqldb

import (
	"context"
	"database/sql"
	"fmt"
)

// MoveSequence makes the numbers that the database gives to a column, an identity
// of PostgreSQL or an AUTOINCREMENT of SQLite, go on above past. It returns the
// number that would have been next, or 0 where nothing had to be moved: a
// sequence is never moved back. To move a sequence of PostgreSQL it locks the table
// for the rest of the transaction: every transaction that has drawn a low number
// has committed before, and later ones draw a number above past. The error wraps
// ErrUnfit when the role may not read the sequence.
func (db *DB) MoveSequence(ctx context.Context, tx *sql.Tx, table, column string, past int64) (next int64, err error) {
	if db.Engine == SQLite {
		return db.moveAutoincrement(ctx, tx, table, past)
	}
	if next, err = nextIfBehind(ctx, tx, table, column, past); err != nil || next == 0 {
		return 0, err
	}
	if _, err = tx.ExecContext(ctx, `LOCK TABLE `+table+` IN SHARE ROW EXCLUSIVE MODE`); err != nil {
		return 0, err
	}
	if next, err = nextIfBehind(ctx, tx, table, column, past); err != nil || next == 0 {
		return 0, err
	}
	_, err = tx.ExecContext(ctx, `SELECT setval(pg_get_serial_sequence($1, $2)::regclass, $3)`, table, column, past)
	return next, err
}

// nextIfBehind is the next number of a sequence if that is not above past, else 0.
func nextIfBehind(ctx context.Context, tx *sql.Tx, table, column string, past int64) (next int64, err error) {
	var name string
	var readable bool
	// The view pg_sequences would open all sequences of the database, also those that are dropped meanwhile.
	err = tx.QueryRowContext(ctx, `
		SELECT COALESCE(CASE WHEN readable THEN pg_sequence_last_value(seqrelid) END + seqincrement, seqstart), name, readable
		FROM (SELECT *, seqrelid::regclass::text AS name, has_sequence_privilege(seqrelid, 'SELECT, USAGE') AS readable
			FROM pg_sequence WHERE seqrelid = pg_get_serial_sequence($1, $2)::regclass) s`, table, column).Scan(&next, &name, &readable)
	switch {
	case err != nil || past == 0:
		return 0, err
	case !readable: // PostgreSQL shows a last_value of NULL then
		return 0, fmt.Errorf("%w: the role may not read the sequence %s: GRANT SELECT, UPDATE ON SEQUENCE %[2]s", ErrUnfit, name)
	case next > past:
		return 0, nil
	}
	return next, nil
}

func (db *DB) moveAutoincrement(ctx context.Context, tx *sql.Tx, table string, past int64) (next int64, err error) {
	err = tx.QueryRowContext(ctx, `SELECT COALESCE((SELECT seq FROM sqlite_sequence WHERE name = $1), 0) + 1`, table).Scan(&next)
	if err != nil || next > past {
		return 0, err
	}
	if _, err := tx.ExecContext(ctx, `DELETE FROM sqlite_sequence WHERE name = $1`, table); err != nil {
		return 0, err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO sqlite_sequence (name, seq) VALUES ($1, $2)`, table, past)
	return next, err
}
