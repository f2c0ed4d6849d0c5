package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pizzaflow/sqldb"
)

// fill writes n rows into a table as fast as the engine takes them, in order.
func fill(ctx context.Context, db *sqldb.DB, table string, columns []string, n int, row func(int) []any) error {
	if n <= 0 {
		return nil
	}
	var err error
	if db.Engine == sqldb.Postgres {
		err = copyRows(ctx, db, table, columns, n, row)
	} else {
		err = insertRows(ctx, db, table, columns, n, row)
	}
	if err != nil {
		return fmt.Errorf("fill %s: %w", table, err)
	}
	return nil
}

func copyRows(ctx context.Context, db *sqldb.DB, table string, columns []string, n int, row func(int) []any) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	err = conn.Raw(func(driver any) error {
		c := driver.(interface{ Conn() *pgx.Conn }).Conn()
		if _, err := c.CopyFrom(ctx, pgx.Identifier{table}, columns, pgx.CopyFromSlice(n, func(i int) ([]any, error) { return row(i), nil })); err != nil {
			return err
		}
		// what the first reader would else do for all who come after him
		_, err := c.Exec(ctx, `VACUUM ANALYZE `+pgx.Identifier{table}.Sanitize())
		return err
	})
	return errors.Join(err, conn.Close())
}

func insertRows(ctx context.Context, db *sqldb.DB, table string, columns []string, n int, row func(int) []any) error {
	const perStatement, perTx = 64, 16384
	head := `INSERT INTO ` + table + ` (` + strings.Join(columns, ", ") + `) VALUES `
	return sqldb.Chunks(n, perTx, func(from, to int) error {
		return db.Tx(ctx, func(tx *sql.Tx) error {
			return sqldb.Chunks(to-from, perStatement, func(a, z int) error {
				var args []any
				for i := from + a; i < from+z; i++ {
					args = append(args, row(i)...)
				}
				_, err := tx.ExecContext(ctx, head+sqldb.Values(len(columns), z-a), args...)
				return err
			})
		})
	})
}

func newID() string { return uuid.Must(uuid.NewV7()).String() }

// createTables runs statements written for PostgreSQL on either engine.
func createTables(ctx context.Context, db *sqldb.DB, statements ...string) error {
	for _, s := range statements {
		if db.Engine == sqldb.SQLite {
			s = strings.NewReplacer("JSONB", "TEXT", "UUID", "TEXT", "TIMESTAMPTZ", "TIMESTAMP",
				"BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", "INTEGER PRIMARY KEY AUTOINCREMENT").Replace(s)
		}
		if _, err := db.ExecContext(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}
