package sqldb

import (
	"context"
	"database/sql"
	"fmt"
)

// MoveSequence has the numbers that the database gives to a column, an identity
// of PostgreSQL or an AUTOINCREMENT of SQLite, begin above past, and reports
// whether it had to be moved. A sequence is never moved back.
func (db *DB) MoveSequence(ctx context.Context, tx *sql.Tx, table, column string, past int64) (moved bool, err error) {
	if db.Engine == SQLite {
		return db.moveAutoincrement(ctx, tx, table, past)
	}
	var next int64
	var name string
	var readable bool
	err = tx.QueryRowContext(ctx, `
		SELECT COALESCE(last_value + increment_by, start_value), s, has_sequence_privilege(s, 'SELECT')
		FROM pg_sequences, pg_get_serial_sequence($1, $2) s
		WHERE format('%I.%I', schemaname, sequencename) = s`, table, column).Scan(&next, &name, &readable)
	switch {
	case err != nil || past == 0:
		return false, err
	case !readable: // PostgreSQL shows a last_value of NULL then
		return false, fmt.Errorf("%w: the role may not read the sequence %s: GRANT SELECT, UPDATE ON SEQUENCE %[2]s", ErrUnfit, name)
	case next > past:
		return false, nil
	}
	// whoever draws a number meanwhile moves it on, too
	_, err = tx.ExecContext(ctx, `
		SELECT setval(s, GREATEST(nextval(s), $3)) FROM (SELECT pg_get_serial_sequence($1, $2)::regclass AS s) q`, table, column, past)
	return err == nil, err
}

func (db *DB) moveAutoincrement(ctx context.Context, tx *sql.Tx, table string, past int64) (moved bool, err error) {
	res, err := tx.ExecContext(ctx, `UPDATE sqlite_sequence SET seq = $1 WHERE name = $2 AND seq < $1`, past, table)
	if err != nil {
		return false, err
	}
	if n, err := res.RowsAffected(); err != nil || n > 0 {
		return n > 0, err
	}
	res, err = tx.ExecContext(ctx, `
		INSERT INTO sqlite_sequence (name, seq) SELECT $2, $1 WHERE $1 > 0 AND NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = $2)`, past, table)
	if err != nil {
		return false, err
	}
	n, err := res.RowsAffected()
	return n > 0, err
}
