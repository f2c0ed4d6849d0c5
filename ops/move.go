package ops

import (
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
	From     string     // sqlite:FOLDER, a DATA_DIR, or sqlite:FILE of one service
	To       []Database // of all services, where they are found after the move; the first one moves last
	Services []string   // the names of those to move; none are all
}

// A MovedTable is a table as it stands at the end of a Move on either side.
type MovedTable struct {
	Service string `json:"service"`
	sqldb.Copied
}

// A moving is the move of one service.
type moving struct {
	file string
	to   Database
}

// Run moves the services' data from SQLite to PostgreSQL, the schemas of which it makes, and logs its progress. No service
// may run on either side: the files are locked, and a target that was ever used is refused, with sqldb.ErrNotEmpty. Each
// service moves in one transaction, so after a crash the same call goes on: a service that was moved before, row for row,
// stays as it is. The source is brought up to date and else only read; a file beside it marks it as moved, and then no
// service starts on it. A service with MovesLast moves after the others: without its orders a service that is started too
// early charges nobody twice.
//
// The outbox comes along as it is. Relays that find the topics of another cluster publish all retained events again, and
// the inboxes, which have come along, drop those that were handled before.
func (m Move) Run(ctx context.Context, log *slog.Logger) (tables []MovedTable, err error) {
	parts, err := m.plan()
	if err != nil {
		return nil, err
	}
	for _, p := range parts {
		lock, err := filelock.Acquire(p.file + ".lock")
		if err != nil {
			return nil, fmt.Errorf("move %s: %w", p.to.Service, err)
		}
		defer func() { err = errors.Join(err, lock.Close()) }()
	}
	for _, p := range parts {
		copied, err := p.run(ctx, log.With("service", p.to.Service))
		if err != nil {
			return nil, fmt.Errorf("move %s: %w", p.to.Service, err)
		}
		for _, t := range copied {
			tables = append(tables, MovedTable{p.to.Service, t})
		}
	}
	if rest := m.others(parts); len(rest) > 0 {
		log.Warn("nothing may start before these are moved, too: an empty database acts on all events of 7 days again, charges and messages included", "services", rest)
	}
	return tables, nil
}

// others are the services that are not moved.
func (m Move) others(parts []moving) []string {
	var rest []string
	for _, d := range m.To {
		if !slices.ContainsFunc(parts, func(p moving) bool { return p.to.Service == d.Service }) {
			rest = append(rest, d.Service)
		}
	}
	return rest
}

// plan returns the moves in their order, those with MovesLast at the end. It changes nothing.
func (m Move) plan() ([]moving, error) {
	for _, name := range m.Services {
		if !slices.ContainsFunc(m.To, func(d Database) bool { return d.Service == name }) {
			return nil, fmt.Errorf("%w: --service: %q has no tables", ErrUsage, name)
		}
	}
	file, err := m.files()
	if err != nil {
		return nil, err
	}
	var parts []moving
	for _, d := range slices.SortedStableFunc(slices.Values(m.To), movesLater) {
		if len(m.Services) > 0 && !slices.Contains(m.Services, d.Service) {
			continue
		}
		p := moving{file(d.Service), d}
		if _, err := os.Stat(p.file); err != nil { // opening the file would create it
			return nil, fmt.Errorf("%w: --from: %w; without it, name the services that move with --service", ErrUsage, err)
		}
		parts = append(parts, p)
	}
	if len(parts) > 1 && parts[0].to.URL == parts[1].to.URL {
		return nil, fmt.Errorf("%w: --to: names a search_path, which is one service's: name it with --service", ErrUsage)
	}
	return parts, nil
}

// movesLater compares two services by when they move.
func movesLater(a, b Database) int {
	switch {
	case a.MovesLast == b.MovesLast:
		return 0
	case a.MovesLast:
		return 1
	}
	return -1
}

// files returns where the file of each service is.
func (m Move) files() (file func(service string) string, err error) {
	path, ok := strings.CutPrefix(m.From, "sqlite:")
	if !ok || path == "" {
		return nil, fmt.Errorf("%w: --from: want sqlite:FOLDER, or sqlite:FILE with --service", ErrUsage)
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: --from: %w", ErrUsage, err)
	case info.IsDir():
		return func(service string) string { return filepath.Join(path, service+".db") }, nil
	case len(m.Services) != 1:
		return nil, fmt.Errorf("%w: --from: %s is a file: name its service with --service", ErrUsage, path)
	}
	return func(string) string { return path }, nil
}

// movedFile is what the name of a moved service's file gets appended to make that of its mark.
const movedFile = ".moved"

// markMoved returns when the mark, and its name, survive a power cut.
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

// CheckNotMoved refuses a service's SQLite file that was moved: two systems with the same orders would charge and tell each
// customer twice.
func CheckNotMoved(file string) error {
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
	to, err := p.open(ctx, p.to.URL)
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

// open opens one side and brings its tables up to date.
func (p moving) open(ctx context.Context, url string) (*sqldb.DB, error) {
	db, err := sqldb.Open(ctx, url)
	if err != nil {
		return nil, err
	}
	if err := p.to.Migrate(ctx, db); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}
