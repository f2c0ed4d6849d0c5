package sqldb_test

import (
	"crypto/rand"
	"errors"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// A disk is a small file system of its own.
type disk struct {
	t   *testing.T
	dir string
}

func newDisk(t *testing.T, size string) *disk {
	t.Helper()
	// Not t.TempDir, which only its owner may enter: PostgreSQL is another user.
	dir, err := os.MkdirTemp("", "pizzaflow-disk-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	err = syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=711,size="+size)
	if errors.Is(err, syscall.EPERM) {
		t.Skip("only root can mount a small disk")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return &disk{t, dir}
}

func (d *disk) filler() string { return filepath.Join(d.dir, "filler") }

// fill leaves no byte free.
func (d *disk) fill() {
	d.t.Helper()
	f, err := os.Create(d.filler())
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, rand.Reader); !errors.Is(err, syscall.ENOSPC) {
		d.t.Fatalf("fill the disk: %v", err)
	}
}

func (d *disk) empty() {
	d.t.Helper()
	if err := os.Remove(d.filler()); err != nil {
		d.t.Fatal(err)
	}
}

// CheckWrites fails while the disk is full, although small writes may still find room
// in pages that exist already, and succeeds when there is room again.
func TestCheckWritesOnAFullDisk(t *testing.T) {
	check := func(t *testing.T, d *disk, db *sqldb.DB) {
		mustExec(t, db, `INSERT INTO things (id, n) VALUES ('margherita', 1)`)
		takes(t, db)
		d.fill()
		if db.Engine == sqldb.Postgres {
			mustExec(t, db, `INSERT INTO things (id, n) VALUES ('funghi', 2)`)
		}
		for range 3 {
			refuses(t, db, "")
		}
		d.empty()
		takes(t, db)
	}
	t.Run("sqlite", func(t *testing.T) {
		d := newDisk(t, "4m")
		check(t, d, sqltest.Connect(t, "sqlite:"+filepath.Join(d.dir, "test.db"), schema))
	})
	t.Run("postgres", func(t *testing.T) {
		server := sqltest.Open(t, sqldb.Postgres)
		d := newDisk(t, "24m")
		var data string
		if err := server.QueryRow(`SHOW data_directory`).Scan(&data); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(data)
		if err != nil {
			t.Skipf("the server is elsewhere: %v", err)
		}
		owner := info.Sys().(*syscall.Stat_t)
		folder := filepath.Join(d.dir, "tablespace")
		if err := errors.Join(os.Mkdir(folder, 0o700), os.Chown(folder, int(owner.Uid), int(owner.Gid))); err != nil {
			t.Fatal(err)
		}
		name := "t_" + strings.ToLower(rand.Text())
		mustExec(t, server, `CREATE TABLESPACE `+name+` LOCATION '`+folder+`'`)
		t.Cleanup(func() { mustExec(t, server, `DROP TABLESPACE `+name) })
		mustExec(t, server, `CREATE DATABASE `+name+` TABLESPACE `+name)
		t.Cleanup(func() { mustExec(t, server, `DROP DATABASE `+name+` WITH (FORCE)`) })
		u, err := url.Parse(os.Getenv("DATABASE_URL"))
		if err != nil {
			t.Fatal(err)
		}
		u.Path = "/" + name
		check(t, d, sqltest.Connect(t, u.String(), schema))
	})
}
