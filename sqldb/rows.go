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
	Columns string // of a row: the name and PostgreSQL's type, or CLOCK (see ClockColumn), of each
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
		args := slices.Concat(columns(rows), own, []any{len(rows)})
		return collect(got)(q.QueryContext(ctx, r.many(len(own)), args...))
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

// many is the statement with all rows, and own arguments of its own. The last
// argument is how many rows there are, which says nothing new, but a limit not
// known beforehand has the planner expect a tenth, one row of the ten it takes
// an array for, and look each up in the index. Expecting ten it reads all of a
// young table, as long as that is smaller than what ten look-ups read, and a
// prepared statement goes on doing so while the table grows, until somebody
// analyzes it: at 500 orders a second an order cost PostgreSQL twice as much
// after half a minute.
func (r Rows) many(own int) string {
	var arrays, names, cells []string
	for c := range strings.SplitSeq(r.Columns, ",") {
		name, kind, _ := strings.Cut(strings.TrimSpace(c), " ")
		names = append(names, name)
		arrays = append(arrays, array(len(names), kind))
		cells = append(cells, cell(Postgres, kind, "u."+name)+" AS "+name)
	}
	all := fmt.Sprintf("(SELECT %s FROM unnest(%s) AS u(%s) LIMIT $%d) AS v",
		strings.Join(cells, ", "), strings.Join(arrays, ", "), strings.Join(names, ", "), len(names)+own+1)
	return strings.Replace(r.SQL, "{rows}", all, 1)
}

// one is the statement with one row, on SQLite.
func (r Rows) one() string {
	var values []string
	for c := range strings.SplitSeq(r.Columns, ",") {
		name, kind, _ := strings.Cut(strings.TrimSpace(c), " ")
		values = append(values, cell(SQLite, kind, fmt.Sprintf("$%d", len(values)+1))+" AS "+name)
	}
	return strings.Replace(r.SQL, "{rows}", "(SELECT "+strings.Join(values, ", ")+") AS v", 1)
}
