package sqldb

import (
	"context"
	"fmt"
	"hash/fnv"
	"io/fs"
	"path"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

// migrationTimeout limits one statement of a migration, which may have to rewrite a
// whole table, and the wait for the migrations of another process.
const migrationTimeout = time.Hour

// Migrate brings a set of tables up to date: it runs the files
// schema/<engine>/*.sql of fsys, in the order of their names, each once and in a
// transaction of its own. Each set keeps its own version table, <set>_migrations.
// Any number of processes may call it at once. On PostgreSQL the schema that
// search_path names is created. After an error the files before the one that
// failed are applied.
func (db *DB) Migrate(ctx context.Context, set string, fsys fs.FS) error {
	files, err := fs.Sub(fsys, path.Join("schema", string(db.Engine)))
	if err != nil {
		return fmt.Errorf("migrate %s: %w", set, err)
	}
	opts := []goose.ProviderOption{goose.WithTableName(set + "_migrations"), goose.WithDisableGlobalRegistry(true)}
	dialect := goose.DialectSQLite3
	if db.Engine == Postgres {
		dialect = goose.DialectPostgres
		if err := db.createSchema(ctx); err != nil {
			return fmt.Errorf("migrate %s: %w", set, err)
		}
		// An advisory lock is the whole database's, a set one schema's.
		h := fnv.New32a()
		fmt.Fprintf(h, "%s.%s", db.schema, set)
		locker, err := lock.NewPostgresSessionLocker(lock.WithLockID(int64(h.Sum32())), lock.WithLockTimeout(1, uint64(migrationTimeout.Seconds())))
		if err != nil {
			return fmt.Errorf("migrate %s: %w", set, err)
		}
		opts = append(opts, goose.WithSessionLocker(locker))
	}
	p, err := goose.NewProvider(dialect, db.DB, files, opts...)
	if err != nil {
		return fmt.Errorf("migrate %s: %w", set, err)
	}
	if _, err := p.Up(WithStatementTimeout(ctx, migrationTimeout)); err != nil {
		return fmt.Errorf("migrate %s: %w", set, err)
	}
	return nil
}

// createSchema makes the schema of search_path unless it is there: a role that
// may not create schemas can still use the one it was given.
func (db *DB) createSchema(ctx context.Context) error {
	if db.schema == "" {
		return nil
	}
	var n int
	if err := db.QueryRowContext(ctx, `SELECT COUNT(*) FROM pg_namespace WHERE nspname = $1`, db.schema).Scan(&n); err != nil || n == 1 {
		return err
	}
	_, err := db.ExecContext(ctx, `CREATE SCHEMA IF NOT EXISTS `+pgx.Identifier{db.schema}.Sanitize())
	if IsUnique(err) { // another process created it at the same time
		return nil
	}
	return err
}
