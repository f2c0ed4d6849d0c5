package sqldb_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// checkWrites is CheckWrites with a deadline, as readiness calls it.
func checkWrites(t *testing.T, db *sqldb.DB) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	return db.CheckWrites(ctx)
}

// refuses wants CheckWrites to fail because of the database, for that reason.
func refuses(t *testing.T, db *sqldb.DB, because string) {
	t.Helper()
	err := checkWrites(t, db)
	if !sqldb.IsUnavailable(err) || !strings.Contains(err.Error(), because) {
		t.Errorf("CheckWrites: %v, want the database's fault: %s", err, because)
	}
}

// takes wants CheckWrites to succeed.
func takes(t *testing.T, db *sqldb.DB) {
	t.Helper()
	if err := checkWrites(t, db); err != nil {
		t.Errorf("CheckWrites: %v", err)
	}
}

// CheckWrites, which readiness calls every second, leaves nothing behind.
func TestCheckWritesLeavesNothingBehind(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		mustExec(t, db, `INSERT INTO things (id, n) VALUES ('margherita', 1)`)
		takes(t, db)
		before := weigh(t, db)
		for range 50 {
			takes(t, db)
		}
		if after := weigh(t, db); after != before {
			t.Errorf("the database takes %d bytes, and took %d", after, before)
		}
		if n := count(t, db); n != 1 {
			t.Errorf("%d rows, want the one", n)
		}
	}, schema)
}

// A table in the schema that another role owns is not checked, and may be locked.
func TestCheckWritesLeavesOthersAlone(t *testing.T) {
	db := sqltest.Open(t, sqldb.Postgres, schema)
	stranger := "r_stranger_" + strings.ToLower(rand.Text())
	mustExec(t, db, `CREATE ROLE `+stranger)
	mustExec(t, db, `CREATE TABLE strange_things (id TEXT)`)
	mustExec(t, db, `ALTER TABLE strange_things OWNER TO `+stranger)
	defer mustExec(t, db, `DROP OWNED BY `+stranger+`; DROP ROLE `+stranger)
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(`LOCK TABLE strange_things`); err != nil {
		t.Fatal(err)
	}
	takes(t, db)
	if _, err := tx.Exec(`LOCK TABLE things`); err != nil {
		t.Fatal(err)
	}
	refuses(t, db, "lock")
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
}

// weigh is the size of the database in bytes: of its tables, or of all files in its
// folder but the write-ahead log, which is overwritten again and again.
func weigh(t *testing.T, db *sqldb.DB) (bytes int64) {
	t.Helper()
	if db.Engine == sqldb.Postgres {
		err := db.QueryRow(`SELECT COALESCE(SUM(pg_total_relation_size(oid)), 0) FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'`).Scan(&bytes)
		if err != nil {
			t.Fatal(err)
		}
		return bytes
	}
	files, err := os.ReadDir(filepath.Dir(fileOf(t, db)))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if info, err := f.Info(); err == nil && !strings.HasSuffix(f.Name(), "-wal") {
			bytes += info.Size()
		}
	}
	return bytes
}

func fileOf(t *testing.T, db *sqldb.DB) (path string) {
	t.Helper()
	if err := db.QueryRow(`SELECT file FROM pragma_database_list`).Scan(&path); err != nil {
		t.Fatal(err)
	}
	return path
}

// CheckWrites fails while another session holds a lock that rows cannot be inserted
// under, and not for weaker locks.
func TestCheckWritesMeetsLocks(t *testing.T) {
	t.Run("postgres", func(t *testing.T) {
		db := sqltest.Open(t, sqldb.Postgres, schema)
		mustExec(t, db, `CREATE TABLE more (n BIGINT GENERATED ALWAYS AS IDENTITY, twice BIGINT GENERATED ALWAYS AS (n * 2) STORED)`)
		for mode, refused := range map[string]bool{
			"ACCESS EXCLUSIVE": true, "EXCLUSIVE": true, "SHARE ROW EXCLUSIVE": true, "SHARE": true, // as CREATE INDEX takes it
			"SHARE UPDATE EXCLUSIVE": false, "ROW EXCLUSIVE": false, "ACCESS SHARE": false,
		} {
			for _, table := range []string{"things", "more"} {
				tx, err := db.BeginTx(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := tx.Exec(`LOCK TABLE ` + table + ` IN ` + mode + ` MODE`); err != nil {
					t.Fatal(err)
				}
				if refused {
					refuses(t, db, "lock timeout")
				} else {
					takes(t, db)
				}
				if err := tx.Rollback(); err != nil {
					t.Fatal(err)
				}
			}
		}
		takes(t, db)
	})
	t.Run("sqlite", func(t *testing.T) {
		db := sqltest.Open(t, sqldb.SQLite, schema)
		other := sqltest.Connect(t, "sqlite:"+fileOf(t, db))
		tx, err := other.BeginTx(t.Context(), nil) // writes at once
		if err != nil {
			t.Fatal(err)
		}
		refuses(t, db, "")
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		takes(t, db)
	})
}

func TestCheckWritesOfAReadOnlyDatabase(t *testing.T) {
	t.Run("postgres", func(t *testing.T) {
		u := sqltest.URL(t, sqldb.Postgres)
		sqltest.Connect(t, u, schema)
		db := sqltest.Connect(t, u+"&default_transaction_read_only=on")
		refuses(t, db, "read-only transaction")
	})
	t.Run("sqlite", func(t *testing.T) {
		db := sqltest.Open(t, sqldb.SQLite, schema)
		mustExec(t, db, `PRAGMA query_only = 1`)
		refuses(t, db, "readonly")
		mustExec(t, db, `PRAGMA query_only = 0`)
		takes(t, db)
	})
}

// CheckWrites finds a table that the role may read and not write.
func TestCheckWritesWithoutTheRight(t *testing.T) {
	u := sqltest.URL(t, sqldb.Postgres)
	owner := sqltest.Connect(t, u, schema)
	role, password := "t_"+strings.ToLower(rand.Text()), rand.Text()
	mustExec(t, owner, `CREATE ROLE `+role+` LOGIN PASSWORD '`+password+`'`)
	t.Cleanup(func() { mustExec(t, owner, `DROP OWNED BY `+role); mustExec(t, owner, `DROP ROLE `+role) })
	mustExec(t, owner, `DO $$ BEGIN EXECUTE format('GRANT USAGE ON SCHEMA %I TO `+role+`', current_schema()); END $$`)
	mustExec(t, owner, `GRANT SELECT, UPDATE ON things TO `+role)
	db := sqltest.Connect(t, as(t, u, role, password))
	refuses(t, db, "permission denied for table things")
	mustExec(t, owner, `GRANT INSERT ON things TO `+role)
	takes(t, db)
}

// as is the URL for another user.
func as(t *testing.T, rawURL, user, password string) string {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(user, password)
	return u.String()
}

// The error of a Group's flush counts for ten seconds, so that readiness comes back
// without traffic, or until the next flush that succeeds.
func TestCheckWritesHearsOfFlushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := sqltest.Open(t, sqldb.SQLite, schema)
		var fault error
		put := sqldb.NewGroup(db, func(context.Context, []thing) ([]int, error) { return make([]int, 1), fault })
		other := sqldb.NewGroup(db, func(context.Context, []thing) ([]int, error) { return make([]int, 1), nil })
		flush := func(err error) {
			fault = err
			_, _ = put.Do(t.Context(), thing{})
		}
		flush(sql.ErrConnDone)
		refuses(t, db, "last write failed: sql: connection is already closed")
		if _, err := other.Do(t.Context(), thing{}); err != nil {
			t.Fatal(err)
		}
		refuses(t, db, "last write failed") // the other group had no error
		flush(nil)
		takes(t, db)
		flush(errors.New("a fault of the item's own"))
		takes(t, db)
		flush(sql.ErrConnDone)
		time.Sleep(9 * time.Second)
		refuses(t, db, "last write failed")
		time.Sleep(2 * time.Second)
		takes(t, db)
	})
}
