package sqltest

import (
	"testing"
	"time"

	"pizzaflow/sqldb"
)

// SetClock makes the times in columns of a table, which has an id, look as they
// do after the clock was set: forward by so much, or back where it is negative.
// Nobody may write to the table meanwhile.
func SetClock(t testing.TB, db *sqldb.DB, by time.Duration, table string, columns ...string) {
	t.Helper()
	for _, column := range columns {
		for id, at := range times(t, db, `SELECT id, `+column+` FROM `+table+` WHERE `+column+` IS NOT NULL`) {
			if _, err := db.Exec(`UPDATE `+table+` SET `+column+` = $1 WHERE id = $2`, at.Add(-by), id); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func times(t testing.TB, db *sqldb.DB, query string) map[string]time.Time {
	t.Helper()
	rows, err := db.Query(query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	all := map[string]time.Time{}
	for rows.Next() {
		var id string
		var at time.Time
		if err := rows.Scan(&id, sqldb.Time(&at)); err != nil {
			t.Fatal(err)
		}
		all[id] = at
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}
