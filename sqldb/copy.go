package sqldb

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrNotEmpty is wrapped by the error of Copy when the target holds other rows
// than the source.
var ErrNotEmpty = errors.New("the target is not empty")

// A Copied is a table whose rows are the same in source and target, and how many
// they are.
type Copied struct {
	Table string `json:"table"`
	Rows  int64  `json:"rows"`
}

// Copy fills a PostgreSQL schema that was migrated and never used with the rows
// of a SQLite database of the same migrations, in one transaction: it copies all
// rows or none. No other process may write to either meanwhile; the tables of the
// target are locked. At the end the target is read back and compared with the
// source, row by row. Numbers that the source gave to rows, also to rows that are
// deleted by now, are not given again.
//
// The target decides what is copied: every table of its schema but those of
// the migrations, with all columns; a source without them is refused.
// initialRows are the tables that a migration gives a row, each with an SQL
// condition that this row meets as long as nobody has used it: the source's row
// replaces it.
//
// When the target holds the rows of the source already, as after a Copy whose
// answer was lost, nothing is changed and done is true. When it holds any other
// row, the error wraps ErrNotEmpty. progress is called after each table.
// beforeCommit is called before the target commits; after an error of it the
// target is rolled back.
func Copy(ctx context.Context, from, to *DB, initialRows map[string]string, progress func(Copied), beforeCommit func() error) (tables []Copied, done bool, err error) {
	if from.Engine != SQLite || to.Engine != Postgres {
		return nil, false, fmt.Errorf("copy from %s to %s: only from sqlite to postgres", from.Engine, to.Engine)
	}
	src, err := from.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, false, fmt.Errorf("copy: %w", err)
	}
	defer func() { err = errors.Join(err, src.Rollback()) }()
	conn, err := to.Session(ctx)
	if err != nil {
		return nil, false, fmt.Errorf("copy: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	err = conn.Raw(func(raw any) error {
		c := raw.(*connection).Conn() //nolint:forcetypeassert // this package opened it
		return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
			tables, done, err = (&copier{src: src, dst: tx, initialRows: initialRows, progress: progress}).run(ctx)
			if err == nil {
				err = beforeCommit()
			}
			return err
		})
	})
	if err != nil {
		return nil, false, fmt.Errorf("copy: %w", err)
	}
	return tables, done, nil
}

// A copier is one call of Copy.
type copier struct {
	src         *sql.Tx
	dst         pgx.Tx
	initialRows map[string]string
	progress    func(Copied)
}

// A table is a table of the target.
type table struct {
	name    string
	columns []column
}

type column struct {
	name     string
	kind     string // PostgreSQL's name of its type
	sequence string // the sequence that numbers its rows, if there is one
}

// run copies all tables, or compares them where the target is used.
func (c *copier) run(ctx context.Context) (counts []Copied, done bool, err error) {
	tables, err := c.plan(ctx)
	if err != nil {
		return nil, false, err
	}
	used, err := c.isUsed(ctx, tables)
	if err != nil {
		return nil, false, err
	}
	for _, t := range tables {
		var source checksum
		if used {
			source, err = c.readSource(ctx, t)
		} else {
			source, err = c.fill(ctx, t)
		}
		if err != nil {
			return nil, false, fmt.Errorf("%s: %w", t.name, err)
		}
		target, err := c.readTarget(ctx, t)
		switch {
		case err != nil:
			return nil, false, fmt.Errorf("%s: %w", t.name, err)
		case target != source && used:
			return nil, false, fmt.Errorf("%w: table %s has %d rows, which differ from the %d of the source", ErrNotEmpty, t.name, target.rows, source.rows)
		case target != source:
			return nil, false, fmt.Errorf("%s: the rows read back from the target (%d) differ from those of the source (%d)", t.name, target.rows, source.rows)
		}
		counts = append(counts, Copied{t.name, target.rows})
		c.progress(counts[len(counts)-1])
	}
	return counts, used, nil
}

// plan locks the tables of the target and returns them in an order in which each
// follows the tables that it refers to.
func (c *copier) plan(ctx context.Context) ([]table, error) {
	// The target's session is idle in its transaction while the source is read.
	if _, err := c.dst.Exec(ctx, `SET LOCAL lock_timeout = '10s'; SET LOCAL idle_in_transaction_session_timeout = 0`); err != nil {
		return nil, err
	}
	rows, err := c.dst.Query(ctx, `
		SELECT c.relname, a.attname, format_type(a.atttypid, NULL), COALESCE(pg_get_serial_sequence(quote_ident(c.relname), a.attname), '')
		FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
		WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r' AND c.relname NOT LIKE '%\_migrations'
		ORDER BY c.relname, a.attnum`)
	if err != nil {
		return nil, fmt.Errorf("look at the target: %w", err)
	}
	var tables []table
	var name string
	var col column
	if _, err := pgx.ForEachRow(rows, []any{&name, &col.name, &col.kind, &col.sequence}, func() error {
		if len(tables) == 0 || tables[len(tables)-1].name != name {
			tables = append(tables, table{name: name})
		}
		t := &tables[len(tables)-1]
		t.columns = append(t.columns, col)
		return nil
	}); err != nil {
		return nil, fmt.Errorf("look at the target: %w", err)
	}
	for _, t := range tables {
		if _, err := c.dst.Exec(ctx, `LOCK TABLE `+t.quoted()+` IN ACCESS EXCLUSIVE MODE`); err != nil {
			return nil, fmt.Errorf("lock %s: %w", t.name, err)
		}
		if err := c.sameColumns(ctx, t); err != nil {
			return nil, err
		}
	}
	return c.inOrder(ctx, tables)
}

// sameColumns returns an error for a source whose table has other columns.
func (c *copier) sameColumns(ctx context.Context, t table) error {
	rows, err := c.src.QueryContext(ctx, `SELECT name FROM pragma_table_info($1) ORDER BY cid`, t.name)
	var have []string
	err = scanAll(func(rows *sql.Rows) error {
		var name string
		err := rows.Scan(&name)
		have = append(have, name)
		return err
	})(rows, err)
	if err != nil {
		return fmt.Errorf("look at the source: %w", err)
	}
	var want []string
	for _, col := range t.columns {
		want = append(want, col.name)
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		return fmt.Errorf("table %s: the source has the columns %v, the target %v", t.name, have, want)
	}
	return nil
}

// inOrder sorts tables so that each follows the tables that it refers to.
func (c *copier) inOrder(ctx context.Context, tables []table) ([]table, error) {
	rows, err := c.dst.Query(ctx, `
		SELECT f.relname, t.relname FROM pg_constraint k JOIN pg_class f ON f.oid = k.conrelid JOIN pg_class t ON t.oid = k.confrelid
		WHERE k.contype = 'f' AND k.connamespace = current_schema()::regnamespace AND f.oid <> t.oid`)
	if err != nil {
		return nil, fmt.Errorf("look at the target: %w", err)
	}
	needs := map[string][]string{}
	var from, to string
	if _, err := pgx.ForEachRow(rows, []any{&from, &to}, func() error {
		needs[from] = append(needs[from], to)
		return nil
	}); err != nil {
		return nil, fmt.Errorf("look at the target: %w", err)
	}
	var order []table
	placed := map[string]bool{}
	for len(order) < len(tables) {
		before := len(order)
		for _, t := range tables {
			if !placed[t.name] && !slices.ContainsFunc(needs[t.name], func(n string) bool { return !placed[n] }) {
				order, placed[t.name] = append(order, t), true
			}
		}
		if len(order) == before {
			return nil, errors.New("the tables refer to each other in a circle")
		}
	}
	return order, nil
}

// isUsed reports whether the target has rows that no migration made.
func (c *copier) isUsed(ctx context.Context, tables []table) (bool, error) {
	for _, t := range tables {
		where := ""
		if unused, ok := c.initialRows[t.name]; ok {
			where = ` WHERE NOT (` + unused + `)`
		}
		var used bool
		if err := c.dst.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM `+t.quoted()+where+`)`).Scan(&used); err != nil || used {
			return used, err
		}
	}
	return false, nil
}

// fill copies a table and returns the checksum of the source.
func (c *copier) fill(ctx context.Context, t table) (checksum, error) {
	if _, ok := c.initialRows[t.name]; ok {
		if _, err := c.dst.Exec(ctx, `DELETE FROM `+t.quoted()); err != nil {
			return checksum{}, err
		}
	}
	rows, err := c.src.QueryContext(ctx, t.selection(SQLite))
	if err != nil {
		return checksum{}, err
	}
	defer rows.Close()
	source := &tableReader{table: t, rows: rows}
	var names []string
	for _, col := range t.columns {
		names = append(names, col.name)
	}
	if _, err := c.dst.CopyFrom(ctx, pgx.Identifier{t.name}, names, source); err != nil {
		return checksum{}, err
	}
	for _, col := range t.columns {
		if col.sequence == "" {
			continue
		}
		var last int64 // the highest number that SQLite ever gave
		err := c.src.QueryRowContext(ctx, `SELECT seq FROM sqlite_sequence WHERE name = $1`, t.name).Scan(&last)
		if errors.Is(err, sql.ErrNoRows) {
			continue // it gave none yet
		}
		if err != nil {
			return checksum{}, err
		}
		if last > 0 {
			if _, err := c.dst.Exec(ctx, `SELECT setval($1::regclass, $2)`, col.sequence, last); err != nil {
				return checksum{}, err
			}
		}
	}
	return source.sum, nil
}

// readSource returns the checksum of a table of the source.
func (c *copier) readSource(ctx context.Context, t table) (checksum, error) {
	rows, err := c.src.QueryContext(ctx, t.selection(SQLite))
	if err != nil {
		return checksum{}, err
	}
	defer rows.Close()
	r := &tableReader{table: t, rows: rows}
	for r.Next() {
		if _, err := r.Values(); err != nil {
			return checksum{}, err
		}
	}
	return r.sum, r.Err()
}

// readTarget returns the checksum of a table of the target.
func (c *copier) readTarget(ctx context.Context, t table) (checksum, error) {
	var sum checksum
	rows, err := c.dst.Query(ctx, t.selection(Postgres))
	if err != nil {
		return sum, err
	}
	defer rows.Close()
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			return sum, err
		}
		sum.add(values)
	}
	return sum, rows.Err()
}

func (t table) quoted() string { return pgx.Identifier{t.name}.Sanitize() }

// selection is the statement that reads the whole table from an engine. Values that
// PostgreSQL stores in types of its own are cast to the text that SQLite stores.
func (t table) selection(engine Engine) string {
	var list []string
	for _, col := range t.columns {
		expr := pgx.Identifier{col.name}.Sanitize()
		if engine == Postgres && (col.kind == "uuid" || col.kind == "json") {
			expr += "::text"
		}
		list = append(list, expr)
	}
	return `SELECT ` + strings.Join(list, ", ") + ` FROM ` + t.quoted()
}

// A tableReader reads a table of SQLite. It implements pgx.CopyFromSource.
type tableReader struct {
	table table
	rows  *sql.Rows
	sum   checksum // of the rows that were read
}

// Next advances to the next row and reports whether there is one.
func (r *tableReader) Next() bool { return r.rows.Next() }

// Err is the error that ended the reading too early.
func (r *tableReader) Err() error { return r.rows.Err() }

// Values is the row as PostgreSQL shall store it.
func (r *tableReader) Values() ([]any, error) {
	values := make([]any, len(r.table.columns))
	into := make([]any, len(values))
	for i := range values {
		into[i] = &values[i]
	}
	if err := r.rows.Scan(into...); err != nil {
		return nil, err
	}
	for i, col := range r.table.columns {
		var err error
		if values[i], err = convert(values[i], col.kind); err != nil {
			return nil, fmt.Errorf("column %s: %w", col.name, err)
		}
	}
	r.sum.add(values)
	return values, nil
}

// convert makes a value of that type of a value of SQLite, which stores any value in
// any column. A value that cannot be converted is an error here or of PostgreSQL.
func convert(v any, kind string) (any, error) {
	if v == nil {
		return nil, nil
	}
	switch kind {
	case "timestamp with time zone":
		var t time.Time
		err := Time(&t).Scan(v)
		return t, err
	case "bytea":
		if s, ok := v.(string); ok {
			return []byte(s), nil
		}
	case "text", "uuid", "json":
		if b, ok := v.([]byte); ok {
			return string(b), nil
		}
	}
	return v, nil
}

// A checksum is of the rows of a table in any order: how many they are, and the
// sum of their hashes.
type checksum struct {
	rows int64
	sum  [4]uint64
}

func (c *checksum) add(values []any) {
	h := sha256.New()
	for _, v := range values {
		switch x := v.(type) {
		case int16:
			v = int64(x)
		case int32:
			v = int64(x)
		case []byte:
			v = string(x)
		case time.Time:
			v = x.UnixMicro()
		}
		text := fmt.Sprint(v)
		fmt.Fprintf(h, "%t %d %s", v == nil, len(text), text)
	}
	digest := h.Sum(nil)
	c.rows++
	for i := range c.sum {
		c.sum[i] += binary.LittleEndian.Uint64(digest[8*i:])
	}
}
