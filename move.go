package pizzaflow

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"pizzaflow/internal/filelock"
	"pizzaflow/outbox"
	"pizzaflow/sqldb"
)

// A Move says what is moved from SQLite to PostgreSQL.
type Move struct {
	From     string   // sqlite:FOLDER, a DATA_DIR, or sqlite:FILE of one service
	To       string   // postgres://…, where each service gets its schema unless the URL names one
	Services []string // which; none are all that have tables
	Config   Config   // what the services will be started with: one whose own URL is To uses it as it is
}

// A MovedTable is a table as it stands at the end of a Move on either side.
type MovedTable struct {
	Service string `json:"service"`
	sqldb.Copied
}

// A moving is the move of one service.
type moving struct {
	service  string
	schema   fs.FS
	file, to string
}

// Migrate moves the services' data from SQLite to PostgreSQL, the schemas of
// which it makes, and tells log how far it is. No service may run on either
// side: the files are locked, and a target that was ever used is refused, with
// sqldb.ErrNotEmpty. Each service moves in one transaction, so after a crash
// the same call goes on: a service that is there already, row for row, stays
// as it is. The source is brought up to date and else only read; a file beside
// it says that it was moved, and then nothing starts on it. Orders move last:
// without them nobody can be charged twice by what runs there too early.
//
// The outbox comes along as it is. Relays that find the topics of another
// cluster publish all retained events again, and the inboxes, which have
// come along, drop what was handled before.
func (m Move) Migrate(ctx context.Context, log *slog.Logger) (tables []MovedTable, err error) {
	parts, err := m.parts()
	if err != nil {
		return nil, err
	}
	for _, p := range parts {
		lock, err := filelock.Acquire(p.file + ".lock")
		if err != nil {
			return nil, fmt.Errorf("move %s: %w", p.service, err)
		}
		defer func() { err = errors.Join(err, lock.Close()) }()
	}
	for _, p := range parts {
		copied, err := p.run(ctx, log.With("service", p.service))
		if err != nil {
			return nil, fmt.Errorf("move %s: %w", p.service, err)
		}
		for _, t := range copied {
			tables = append(tables, MovedTable{p.service, t})
		}
	}
	if rest := others(parts); len(rest) > 0 {
		log.Warn("nothing may start before these are moved, too: an empty payment database charges all orders of 7 days again", "services", rest)
	}
	return tables, nil
}

// others are the services with tables that are not among the parts.
func others(parts []moving) []string {
	var rest []string
	for _, s := range domain {
		if !slices.ContainsFunc(parts, func(p moving) bool { return p.service == s.name }) {
			rest = append(rest, s.name)
		}
	}
	return rest
}

// parts checks what was asked for before anything is touched.
func (m Move) parts() ([]moving, error) {
	path, ok := strings.CutPrefix(m.From, "sqlite:")
	if !ok || path == "" {
		return nil, bad("--from", "want sqlite:FOLDER, or sqlite:FILE with --service")
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, bad("--from", "%w", err)
	}
	if !isPostgres(m.To) {
		return nil, bad("--to", "want postgres://…")
	}
	if !info.IsDir() && len(m.Services) != 1 {
		return nil, bad("--from", "%s is a file: name its service with --service", path)
	}
	target := Config{DatabaseURL: m.To}
	known := map[string]bool{}
	var out []moving
	for _, s := range domain {
		known[s.name] = true
		if len(m.Services) > 0 && !slices.Contains(m.Services, s.name) {
			continue
		}
		file := path
		if info.IsDir() {
			file = filepath.Join(path, s.name+".db")
		}
		if _, err := os.Stat(file); err != nil { // opening it would make it
			return nil, bad("--from", "%w; without it, name the services that move with --service", err)
		}
		to := target.databaseURL(s.name)
		if m.Config.ownDatabaseURL(s.name) == m.To {
			to = m.To
		}
		out = append(out, moving{s.name, s.schema, file, to})
	}
	for _, name := range m.Services {
		if !known[name] {
			return nil, bad("--service", "%q has no tables", name)
		}
	}
	if len(out) > 1 && out[0].to == out[1].to {
		return nil, bad("--to", "names a search_path, which is one service's: name it with --service")
	}
	slices.SortStableFunc(out, func(a, b moving) int { return cmp.Compare(last(a), last(b)) })
	return out, nil
}

// last is 1 for the service that moves after the others.
func last(p moving) int {
	if p.service == "order" {
		return 1
	}
	return 0
}

// movedFile stands beside the file of a service that was moved.
const movedFile = ".moved"

// markMoved returns when the mark survives a power cut, and so does its name.
func markMoved(file string) error {
	f, err := os.OpenFile(file+movedFile, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "moved to PostgreSQL, or nearly so, at %s\n", time.Now().UTC().Format(time.RFC3339))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// notMoved refuses a service's file that was moved: two systems with the same
// orders would charge and tell each customer twice.
func notMoved(file string) error {
	switch said, err := os.ReadFile(file + movedFile); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	default:
		return fmt.Errorf("it was %s, and started here as well it would charge customers twice: set DATABASE_URL (after pizza migrate has said that all is moved),"+
			" or delete %s to give the move up",
			strings.TrimSpace(string(said)), file+movedFile)
	}
}

func (p moving) run(ctx context.Context, log *slog.Logger) (tables []sqldb.Copied, err error) {
	from, err := p.open(ctx, "sqlite:"+p.file)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	to, err := p.open(ctx, p.to)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	tables, done, err := sqldb.Copy(ctx, from, to, outbox.InitialRows, func(t sqldb.Copied) {
		log.Info("table compared", "table", t.Table, "rows", t.Rows)
	}, func() error { return markMoved(p.file) }) // before PostgreSQL commits: nothing may start on both sides, whenever this process dies
	switch {
	case err != nil:
		return nil, err
	case done:
		log.Info("service was moved before")
	default:
		log.Info("service moved")
	}
	return tables, nil
}

func (p moving) open(ctx context.Context, url string) (*sqldb.DB, error) {
	db, err := sqldb.Open(ctx, url)
	if err != nil {
		return nil, err
	}
	return migrated(ctx, db, p.service, p.schema)
}
