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

// ErrNotEmpty is returned by Copy when the target holds rows that are not
// those of the source.
var ErrNotEmpty = errors.New("the target is not empty")

// A Copied says what Copy found in a table, on either side: so many rows.
type Copied struct {
	Table string `json:"table"`
	Rows  int64  `json:"rows"`
}

// Copy fills a PostgreSQL schema that was migrated and never used with the rows
// of a SQLite database of the same migrations, in one transaction: all of it is
// there, or nothing. Nobody else may write to either meanwhile; the tables of
// the target are locked. What stands in the target at the end is read back and
// compared with the source, row for row. Numbers that the source gave to rows,
// also to those that are deleted by now, are not given again.
//
// The target decides what is copied: every table of its schema but those of
// the migrations, with all columns; a source without them is refused. seeds
// are the tables that are born with a row, each with what is true of this row
// as long as nobody has used it; the source's takes its place.
//
// When the target holds exactly what the source holds, as after a Copy whose
// end nobody heard of, nothing is changed and done is true. When it holds
// anything else, the error is ErrNotEmpty. told is called after each table,
// and last before the target commits: its error takes everything back.
func Copy(ctx context.Context, from, to *DB, seeds map[string]string, told func(Copied), last func() error) (tables []Copied, done bool, err error) {
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
			tables, done, err = (&copying{src: src, dst: tx, seeds: seeds, told: told}).run(ctx)
			if err == nil {
				err = last()
			}
			return err
		})
	})
	if err != nil {
		return nil, false, fmt.Errorf("copy: %w", err)
	}
	return tables, done, nil
}

type copying struct {
	src   *sql.Tx
	dst   pgx.Tx
	seeds map[string]string
	told  func(Copied)
}

// A table is one of the target's, with its columns.
type table struct {
	name    string
	columns []column
}

type column struct {
	name     string
	kind     string // as PostgreSQL calls it
	sequence string // that numbers it, if there is one
}

func (c *copying) run(ctx context.Context) (counts []Copied, done bool, err error) {
	tables, err := c.plan(ctx)
	if err != nil {
		return nil, false, err
	}
	used, err := c.used(ctx, tables)
	if err != nil {
		return nil, false, err
	}
	for _, t := range tables {
		var there content
		if used {
			there, err = c.read(ctx, t)
		} else {
			there, err = c.fill(ctx, t)
		}
		if err != nil {
			return nil, false, fmt.Errorf("%s: %w", t.name, err)
		}
		here, err := c.readBack(ctx, t)
		switch {
		case err != nil:
			return nil, false, fmt.Errorf("%s: %w", t.name, err)
		case here != there && used:
			return nil, false, fmt.Errorf("%w: table %s, %d rows, is not the source's, %d rows", ErrNotEmpty, t.name, here.rows, there.rows)
		case here != there:
			return nil, false, fmt.Errorf("%s: %d rows came out as %d others", t.name, there.rows, here.rows)
		}
		counts = append(counts, Copied{t.name, here.rows})
		c.told(counts[len(counts)-1])
	}
	return counts, used, nil
}

// plan locks the tables of the target and puts them into an order in which
// each follows those it refers to.
func (c *copying) plan(ctx context.Context) ([]table, error) {
	// the source is read while the target waits, for as long as it takes
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

// sameColumns refuses a source whose table has other columns.
func (c *copying) sameColumns(ctx context.Context, t table) error {
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

func (c *copying) inOrder(ctx context.Context, tables []table) ([]table, error) {
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

// used reports whether the target has rows of its own.
func (c *copying) used(ctx context.Context, tables []table) (bool, error) {
	for _, t := range tables {
		where := ""
		if pristine, ok := c.seeds[t.name]; ok {
			where = ` WHERE NOT (` + pristine + `)`
		}
		var used bool
		if err := c.dst.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM `+t.quoted()+where+`)`).Scan(&used); err != nil || used {
			return used, err
		}
	}
	return false, nil
}

// fill copies a table and returns what it was.
func (c *copying) fill(ctx context.Context, t table) (content, error) {
	if _, ok := c.seeds[t.name]; ok {
		if _, err := c.dst.Exec(ctx, `DELETE FROM `+t.quoted()); err != nil {
			return content{}, err
		}
	}
	rows, err := c.src.QueryContext(ctx, t.selection(false))
	if err != nil {
		return content{}, err
	}
	defer rows.Close()
	source := &source{table: t, rows: rows}
	var names []string
	for _, col := range t.columns {
		names = append(names, col.name)
	}
	if _, err := c.dst.CopyFrom(ctx, pgx.Identifier{t.name}, names, source); err != nil {
		return content{}, err
	}
	for _, col := range t.columns {
		if col.sequence == "" {
			continue
		}
		// SQLite remembers the highest number it ever gave
		var last int64
		err := c.src.QueryRowContext(ctx, `SELECT seq FROM sqlite_sequence WHERE name = $1`, t.name).Scan(&last)
		if errors.Is(err, sql.ErrNoRows) {
			continue // it never gave one
		}
		if err != nil {
			return content{}, err
		}
		if last > 0 {
			if _, err := c.dst.Exec(ctx, `SELECT setval($1::regclass, $2)`, col.sequence, last); err != nil {
				return content{}, err
			}
		}
	}
	return source.seen, nil
}

// read is what a table of the source holds.
func (c *copying) read(ctx context.Context, t table) (content, error) {
	rows, err := c.src.QueryContext(ctx, t.selection(false))
	if err != nil {
		return content{}, err
	}
	defer rows.Close()
	s := &source{table: t, rows: rows}
	for s.Next() {
		if _, err := s.Values(); err != nil {
			return content{}, err
		}
	}
	return s.seen, s.Err()
}

// readBack is what a table of the target holds.
func (c *copying) readBack(ctx context.Context, t table) (content, error) {
	var seen content
	rows, err := c.dst.Query(ctx, t.selection(true))
	if err != nil {
		return seen, err
	}
	defer rows.Close()
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			return seen, err
		}
		seen.add(values)
	}
	return seen, rows.Err()
}

func (t table) quoted() string { return pgx.Identifier{t.name}.Sanitize() }

// selection reads the whole table. What PostgreSQL keeps in types of its own
// it hands out as the text that SQLite keeps.
func (t table) selection(back bool) string {
	var list []string
	for _, col := range t.columns {
		expr := pgx.Identifier{col.name}.Sanitize()
		if back && (col.kind == "uuid" || col.kind == "json") {
			expr += "::text"
		}
		list = append(list, expr)
	}
	return `SELECT ` + strings.Join(list, ", ") + ` FROM ` + t.quoted()
}

// A source hands a table of SQLite over to COPY, in the order of its rows.
type source struct {
	table table
	rows  *sql.Rows
	seen  content
}

// Next reports whether there is another row.
func (s *source) Next() bool { return s.rows.Next() }

// Err is what ended the reading too early.
func (s *source) Err() error { return s.rows.Err() }

// Values is the row, as PostgreSQL shall store it.
func (s *source) Values() ([]any, error) {
	values := make([]any, len(s.table.columns))
	into := make([]any, len(values))
	for i := range values {
		into[i] = &values[i]
	}
	if err := s.rows.Scan(into...); err != nil {
		return nil, err
	}
	for i, col := range s.table.columns {
		var err error
		if values[i], err = convert(values[i], col.kind); err != nil {
			return nil, fmt.Errorf("column %s: %w", col.name, err)
		}
	}
	s.seen.add(values)
	return values, nil
}

// convert makes of what SQLite stored a value of that type. SQLite stores
// anything anywhere, so what is none is found here, or refused by PostgreSQL.
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

// A content stands for the rows of a table in whatever order: how many they
// are, and the sum of what each is hashed to.
type content struct {
	rows int64
	sum  [4]uint64
}

func (c *content) add(values []any) {
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
