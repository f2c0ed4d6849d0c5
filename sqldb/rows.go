package sqldb

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Rows is a FROM item over many rows that come in one argument, argument $arg,
// which RowsArg makes. So a statement for many rows is one text, prepared once,
// however many there are. Each column is a name and its PostgreSQL type; SQLite
// needs no type:
//
//	UPDATE payments SET status = v.new_status
//	FROM ` + db.Rows(1, "v", "pid UUID", "new_status TEXT") + `
//	WHERE id = v.pid
//
// In an INSERT … SELECT … ON CONFLICT, SQLite wants a WHERE before the ON.
func (db *DB) Rows(arg int, name string, columns ...string) string {
	var b strings.Builder
	b.WriteString("(SELECT ")
	for i, c := range columns {
		if i > 0 {
			b.WriteString(", ")
		}
		column, kind, _ := strings.Cut(c, " ")
		if db.Engine == Postgres {
			fmt.Fprintf(&b, "CAST(e.value->>%d AS %s) AS %s", i, kind, column)
		} else {
			fmt.Fprintf(&b, "e.value->>%d AS %s", i, column)
		}
	}
	each := "json_each($%d) AS e) %s"
	if db.Engine == Postgres {
		each = "jsonb_array_elements($%d) AS e(value)) %s"
	}
	fmt.Fprintf(&b, " FROM "+each, arg, name)
	return b.String()
}

// RowsArg is n rows as the argument of a statement made with Rows: row returns
// the values of each, in the order of the columns. A zero time is NULL.
func RowsArg(n int, row func(i int) []any) (string, error) {
	rows := make([][]any, n)
	for i := range rows {
		rows[i] = row(i)
		for k, v := range rows[i] {
			if t, ok := v.(time.Time); ok {
				rows[i][k] = timeText(t)
			}
		}
	}
	b, err := json.Marshal(rows)
	if err != nil {
		return "", fmt.Errorf("rows: %w", err)
	}
	return string(b), nil
}

// timeText is a time as SQLite stores it, which PostgreSQL reads as well.
func timeText(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UTC().Truncate(time.Microsecond).Format("2006-01-02 15:04:05.999999999-07:00")
}
