package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"sync"
)

// An Insert is an INSERT of any number of rows, written without its values.
//
// One row is inserted by VALUES ($1, $2, …) on both engines. How many rows are
// inserted was measured: PostgreSQL takes them in one statement, an array for each
// column, so that one round trip and one prepared statement do for any number;
// SQLite, where a statement costs no round trip, takes them one by one in a
// prepared statement, because the cost of a list of VALUES grows there with the
// square of its arguments (256 rows of 13 columns: 100 ms against 2).
type Insert struct {
	Into  string // the statement up to its columns: INSERT INTO things (id, at)
	Types string // PostgreSQL's types of these columns: UUID, TIMESTAMPTZ; or CLOCK, see ClockColumn
	Then  string // what follows the values, such as ON CONFLICT …, or nothing; it has no arguments
}

// Exec inserts the rows, in their order, and returns how many rows were inserted
// or updated. A row has one value for each column. The error is the first one of
// the database, or the context's.
func (in Insert) Exec(ctx context.Context, db *DB, tx *sql.Tx, rows [][]any) (int64, error) {
	switch {
	case len(rows) == 0:
		return 0, nil
	case len(rows) == 1:
		return Affected(tx.ExecContext(ctx, in.one(db.Engine, len(rows[0])), rows[0]...))
	case db.Engine == Postgres:
		return Affected(tx.ExecContext(ctx, in.many(), columns(rows)...))
	}
	var total int64
	err := in.each(ctx, db.Engine, rows, func(ctx context.Context, query string, args []any) error {
		n, err := Affected(tx.ExecContext(ctx, query, args...))
		total += n
		return err
	})
	return total, err
}

// Query is Exec for an Insert whose Then ends with RETURNING: scan is called for
// each row of the result, and its error is returned, too.
func (in Insert) Query(ctx context.Context, db *DB, tx *sql.Tx, rows [][]any, scan func(*sql.Rows) error) error {
	switch {
	case len(rows) > 1 && db.Engine == Postgres:
		return scanAll(scan)(tx.QueryContext(ctx, in.many(), columns(rows)...))
	case len(rows) == 1:
		return scanAll(scan)(tx.QueryContext(ctx, in.one(db.Engine, len(rows[0])), rows[0]...))
	}
	return in.each(ctx, db.Engine, rows, func(ctx context.Context, query string, args []any) error {
		return scanAll(scan)(tx.QueryContext(ctx, query, args...))
	})
}

// scanAll calls scan for each row of a result.
func scanAll(scan func(*sql.Rows) error) func(*sql.Rows, error) error {
	return func(rows *sql.Rows, err error) error {
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			if err := scan(rows); err != nil {
				return err
			}
		}
		return rows.Err()
	}
}

// each runs the statement of one row for every row. The connection keeps it
// prepared.
func (in Insert) each(ctx context.Context, engine Engine, rows [][]any, run func(ctx context.Context, query string, args []any) error) error {
	if len(rows) == 0 {
		return nil
	}
	// The driver starts a goroutine for each statement that can be cancelled.
	// These statements are short, so the context is asked between them instead.
	steady, query := context.WithoutCancel(ctx), in.one(engine, len(rows[0]))
	for _, row := range rows {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := run(steady, query, row); err != nil {
			return err
		}
	}
	return nil
}

// one is the statement for one row.
func (in Insert) one(engine Engine, columns int) string {
	if !strings.Contains(in.Types, ClockColumn) {
		return in.Into + " VALUES (" + List(1, columns) + ") " + in.Then
	}
	values := make([]string, 0, columns)
	for kind := range strings.SplitSeq(in.Types, ",") {
		values = append(values, cell(engine, kind, fmt.Sprintf("$%d", len(values)+1)))
	}
	return in.Into + " VALUES (" + strings.Join(values, ", ") + ") " + in.Then
}

// manyTexts keeps what many returns, so that it is composed once. It is bounded:
// every Insert is a variable of the program.
var manyTexts sync.Map // from Insert to string

// many is the statement for any number of rows on PostgreSQL.
func (in Insert) many() string {
	if text, ok := manyTexts.Load(in); ok {
		return text.(string) //nolint:forcetypeassert // nothing else is stored
	}
	text := in.compose()
	manyTexts.Store(in, text)
	return text
}

func (in Insert) compose() string {
	var arrays, names, cells []string
	for kind := range strings.SplitSeq(in.Types, ",") {
		name := fmt.Sprintf("c%d", len(names)+1)
		names = append(names, name)
		arrays = append(arrays, array(len(names), kind))
		cells = append(cells, cell(Postgres, kind, "u."+name))
	}
	return fmt.Sprintf("%s SELECT %s FROM unnest(%s) AS u(%s) %s",
		in.Into, strings.Join(cells, ", "), strings.Join(arrays, ", "), strings.Join(names, ", "), in.Then)
}

// columns turns rows into arrays, one for each column, with room for one argument
// more.
func columns(rows [][]any) []any {
	width := len(rows[0])
	cells := make([]any, width*len(rows))
	arrays := make([]any, width, width+1)
	for c := range width {
		column := cells[c*len(rows) : (c+1)*len(rows)]
		for r, row := range rows {
			column[r] = row[c]
		}
		arrays[c] = column
	}
	return arrays
}
