package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
)

// A Rows is a statement that reads or changes what many rows of arguments name,
// written once for both engines. {rows} in its SQL stands for these rows, as a
// table called v:
//
//	sqldb.Rows{
//		Columns: `pid UUID, new_status TEXT`,
//		SQL:     `UPDATE payments SET status = v.new_status FROM {rows} WHERE id = v.pid RETURNING id`,
//	}
//
// As with Insert, PostgreSQL gets one statement for all of them, with an array
// for each column, and SQLite one prepared statement for each row: there it
// costs no round trip, and less than taking a list of rows apart. So the
// statement must mean the same both ways: no row may depend on another.
type Rows struct {
	Columns string // of a row: the name and PostgreSQL's type of each
	SQL     string // its own arguments, if it has any, are numbered on from the columns
}

// A Querier runs statements: a *sql.Tx, or on PostgreSQL, where one statement
// is a transaction of its own, also a *DB.
type Querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// Query runs the statement for the rows, each of which has a value for every
// column. got is called for each row that comes back, if there are any.
func (r Rows) Query(ctx context.Context, db *DB, q Querier, rows [][]any, got func(*sql.Rows) error, own ...any) error {
	if len(rows) == 0 {
		return nil
	}
	if db.Engine == Postgres {
		return collect(got)(q.QueryContext(ctx, r.many(), append(columns(rows), own...)...))
	}
	steady := context.WithoutCancel(ctx) // as Insert does
	for _, row := range rows {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := collect(got)(q.QueryContext(steady, r.one(), slices.Concat(row, own)...)); err != nil {
			return err
		}
	}
	return nil
}

// many is the statement with all rows.
func (r Rows) many() string {
	var arrays, names []string
	for c := range strings.SplitSeq(r.Columns, ",") {
		name, kind, _ := strings.Cut(strings.TrimSpace(c), " ")
		names = append(names, name)
		arrays = append(arrays, fmt.Sprintf("$%d::%s[]", len(names), kind))
	}
	return strings.Replace(r.SQL, "{rows}", "unnest("+strings.Join(arrays, ", ")+") AS v("+strings.Join(names, ", ")+")", 1)
}

// one is the statement with one row.
func (r Rows) one() string {
	var values []string
	for c := range strings.SplitSeq(r.Columns, ",") {
		name, _, _ := strings.Cut(strings.TrimSpace(c), " ")
		values = append(values, fmt.Sprintf("$%d AS %s", len(values)+1, name))
	}
	return strings.Replace(r.SQL, "{rows}", "(SELECT "+strings.Join(values, ", ")+") AS v", 1)
}
