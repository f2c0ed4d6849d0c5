package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
)

// A Batch is a statement that is run for many rows of arguments at once, written
// once for both engines. {rows} in its SQL stands for these rows, as a table
// called v:
//
//	sqldb.Batch{
//		Columns: `pid UUID, new_status TEXT`,
//		SQL:     `UPDATE payments SET status = v.new_status FROM {rows} WHERE id = v.pid RETURNING id`,
//	}
//
// As with Insert, PostgreSQL gets one statement for all of them, with an array
// for each column, and SQLite one prepared statement for each row: there it
// costs no round trip, and less than taking a list of rows apart. So the
// statement must mean the same both ways: no row may depend on another.
//
// The columns are the only arguments: a value that is the same for all rows is a
// column, too. So no argument has a number that a new column would shift.
type Batch struct {
	Columns string // of a row: the name and PostgreSQL's type, or CLOCK (see ClockColumn), of each
	SQL     string // the statement, with {rows} in it once, and no $1
}

// A Querier runs statements: a *sql.Tx, or on PostgreSQL, where one statement
// is a transaction of its own, also a *DB.
type Querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// Query runs the statement for the rows, each of which has a value for every
// column; for no rows it does nothing. scan is called for each row of the result,
// and may be nil for a statement that returns none. The error is the first one of
// the database or of scan, or the context's.
func (b Batch) Query(ctx context.Context, db *DB, q Querier, rows [][]any, scan func(*sql.Rows) error) error {
	if len(rows) == 0 {
		return nil
	}
	if db.Engine == Postgres {
		return scanAll(scan)(q.QueryContext(ctx, b.many(), append(columns(rows), len(rows))...))
	}
	steady := context.WithoutCancel(ctx) // as in Insert.each
	for _, row := range rows {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := scanAll(scan)(q.QueryContext(steady, b.one(), row...)); err != nil {
			return err
		}
	}
	return nil
}

// many is the statement for any number of rows on PostgreSQL. Its last argument
// is that number, as a limit. The limit cuts nothing off, but has the planner
// expect one row, which it looks up in the index: it takes an array for ten rows,
// and a limit whose value it does not know for a tenth of them. Expecting ten rows
// it reads all of a young table, as long as that is smaller than what ten look-ups
// read, and a prepared statement goes on doing so while the table grows, until
// somebody analyzes it: at 500 orders a second an order cost PostgreSQL twice as
// much after half a minute.
func (b Batch) many() string {
	var arrays, names, cells []string
	for c := range strings.SplitSeq(b.Columns, ",") {
		name, kind, _ := strings.Cut(strings.TrimSpace(c), " ")
		names = append(names, name)
		arrays = append(arrays, array(len(names), kind))
		cells = append(cells, cell(Postgres, kind, "u."+name)+" AS "+name)
	}
	all := fmt.Sprintf("(SELECT %s FROM unnest(%s) AS u(%s) LIMIT $%d) AS v",
		strings.Join(cells, ", "), strings.Join(arrays, ", "), strings.Join(names, ", "), len(names)+1)
	return strings.Replace(b.SQL, "{rows}", all, 1)
}

// one is the statement for one row on SQLite.
func (b Batch) one() string {
	var values []string
	for c := range strings.SplitSeq(b.Columns, ",") {
		name, kind, _ := strings.Cut(strings.TrimSpace(c), " ")
		values = append(values, cell(SQLite, kind, fmt.Sprintf("$%d", len(values)+1))+" AS "+name)
	}
	return strings.Replace(b.SQL, "{rows}", "(SELECT "+strings.Join(values, ", ")+") AS v", 1)
}
