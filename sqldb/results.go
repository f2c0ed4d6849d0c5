package sqldb

import "database/sql"

// Affected is the number of rows that a statement changed, given the results of
// ExecContext: Affected(tx.ExecContext(…)).
func Affected(res sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// IDs are the ids that a statement returned. Add is an argument of Batch.Query and
// Insert.Query, for results that have this one column.
type IDs map[string]bool

// Add scans one row.
func (ids IDs) Add(rows *sql.Rows) error {
	var id string
	err := rows.Scan(&id)
	ids[id] = true
	return err
}
