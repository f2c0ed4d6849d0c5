package sqldb

import "database/sql"

// Affected is the number of rows that a statement changed: db.ExecContext's
// results go straight into it.
func Affected(res sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// IDs are the ids that a statement returned. Add is for Batch.Query and
// Insert.Query, where a row has this one column.
type IDs map[string]bool

// Add scans one row.
func (ids IDs) Add(rows *sql.Rows) error {
	var id string
	err := rows.Scan(&id)
	ids[id] = true
	return err
}
