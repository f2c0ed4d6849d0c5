package sqldb

import (
	"database/sql"
	"fmt"
)

// ReadAll reads a whole result and closes it. Its arguments are what a query
// returned, and scan makes a value of each row. An error, be it err or one of
// reading, is wrapped with the deed. Without rows it returns an empty slice.
func ReadAll[T any](rows *sql.Rows, err error, scan func(*sql.Rows) (T, error), deed string) ([]T, error) {
	if err != nil {
		return nil, fmt.Errorf("%s: %w", deed, err)
	}
	defer rows.Close()
	out := []T{}
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", deed, err)
		}
		out = append(out, v)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", deed, err)
	}
	return out, nil
}
