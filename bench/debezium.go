package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"pizzaflow/sqldb"
)

// Debezium reads PostgreSQL's log. Here its engine runs as in OutboxRelay.java,
// without the Connect cluster that would be around it.

// errNoDebezium is returned when Java or Maven is missing.
var errNoDebezium = errors.New("without Debezium")

const debeziumInsert = `INSERT INTO outbox_events (id, aggregate_type, aggregate_id, event_type, event_data, created_at)
	VALUES ($1, 'order', $2, 'OrderCreated', $3, $4)`

var debeziumTables = []string{
	`CREATE TABLE outbox_events (id UUID PRIMARY KEY, aggregate_type TEXT NOT NULL, aggregate_id TEXT NOT NULL,
		event_type TEXT NOT NULL, event_data JSONB NOT NULL, created_at TIMESTAMPTZ NOT NULL)`,
	businessTable,
}

// debezium is one outbox that it reads: its database, its slot there and the
// file with how far it has come.
type debezium struct {
	jars, source string
	name         string // of its database and its slot
	url          string
	folder       string
}

// newDebezium fetches the jars, makes the database and starts the engine once
// to make its slot: what is written from then on is its backlog. A slot keeps
// all of the log, and the next start reads all of it, so that each part of the
// run has one of its own and closes it.
func (b *bench) newDebezium(ctx context.Context, name string) (_ *debezium, err error) {
	jars, err := b.debeziumJars(ctx)
	if err != nil {
		return nil, err
	}
	source, err := filepath.Abs(filepath.Join(b.root, "bench", "debezium", "OutboxRelay.java"))
	if err != nil {
		return nil, err
	}
	d := &debezium{jars: jars, source: source, name: name, folder: b.path(name)}
	if err := os.MkdirAll(d.folder, 0o700); err != nil {
		return nil, err
	}
	if d.url, err = b.createDatabase(ctx, name, ""); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close(context.WithoutCancel(ctx), b))
		}
	}()
	db, err := sqldb.Open(ctx, d.url)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := createTables(ctx, db, debeziumTables...); err != nil {
		return nil, err
	}
	return d, d.makeSlot(ctx, b, db)
}

// close drops the slot and the database. The engine has been stopped, but
// PostgreSQL may not have noticed yet.
func (d *debezium) close(ctx context.Context, b *bench) error {
	drop := `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '` + d.name + `'`
	for deadline := time.Now().Add(20 * time.Second); ; {
		err := b.admin(ctx, drop)
		if err == nil {
			return b.dropDatabase(ctx, d.name)
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// makeSlot runs the engine until an event has come through.
func (d *debezium) makeSlot(ctx context.Context, b *bench, db *sqldb.DB) (err error) {
	s, err := mark(ctx, b.brokers, orderTopic)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.forget(ctx)) }()
	c, err := d.start(ctx, b, debeziumTuned)
	if err != nil {
		return err
	}
	defer func() {
		_, e := c.stop()
		err = errors.Join(err, e)
	}()
	look := time.NewTicker(250 * time.Millisecond)
	defer look.Stop()
	for n := 0; ; n++ {
		// an event written before the slot is there is none of its backlog
		_, err := db.ExecContext(ctx, debeziumInsert, newID(), item{}.id(), item{0, 1}.payload(), createdAt(n))
		if err != nil {
			return err
		}
		if came, err := s.count(ctx); err != nil || came > 0 {
			return errors.Join(err, s.settle(ctx))
		}
		if n == 240 {
			return c.failed(errors.New("nothing came in a minute"))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
		}
	}
}

// fill makes the backlog.
func (d *debezium) fill(ctx context.Context, items []item) (err error) {
	db, err := sqldb.Open(ctx, d.url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	columns := []string{"id", "aggregate_type", "aggregate_id", "event_type", "event_data", "created_at"}
	return fill(ctx, db, "outbox_events", columns, len(items), func(n int) []any {
		return []any{newID(), "order", items[n].id(), "OrderCreated", items[n].payload(), createdAt(n)}
	})
}

// debeziumTuned are the settings of a busy outbox, beyond what it needs to run.
var debeziumTuned = map[string]string{
	"poll.interval.ms": "10", "max.batch.size": "8192", "max.queue.size": "32768", "offset.flush.interval.ms": "1000",
	"producer.batch.size": "131072", "producer.buffer.memory": "67108864", "producer.linger.ms": "5",
}

// everyMilli are the same, for the shortest delay that can be had.
func everyMilli() map[string]string {
	settings := maps.Clone(debeziumTuned)
	settings["poll.interval.ms"] = "1"
	return settings
}

// await returns when the engine reads the log.
func (d *debezium) await(ctx context.Context, c *child) (err error) {
	db, err := sqldb.Open(ctx, d.url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	for deadline := time.Now().Add(time.Minute); ; {
		var active bool
		err := db.QueryRowContext(ctx, `SELECT coalesce(bool_or(active), false) FROM pg_replication_slots WHERE database = current_database()`).Scan(&active)
		if err != nil || active {
			return err
		}
		if time.Now().After(deadline) {
			return c.failed(errors.New("it does not read the log after a minute"))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// start starts the engine; without settings, as it comes.
func (d *debezium) start(ctx context.Context, b *bench, settings map[string]string) (*child, error) {
	u, err := url.Parse(d.url)
	if err != nil {
		return nil, err
	}
	engine := map[string]string{
		"name":            "outbox",
		"connector.class": "io.debezium.connector.postgresql.PostgresConnector",
		"topic.prefix":    "bench", "plugin.name": "pgoutput", "slot.name": d.name, "snapshot.mode": "no_data",
		"database.hostname": u.Hostname(), "database.port": u.Port(), "database.user": "postgres", "database.password": "none",
		"database.dbname": strings.TrimPrefix(u.Path, "/"), "table.include.list": "public.outbox_events",
		"publication.autocreate.mode":                         "filtered",
		"offset.storage":                                      "org.apache.kafka.connect.storage.FileOffsetBackingStore",
		"offset.storage.file.filename":                        filepath.Join(d.folder, "offsets"),
		"transforms":                                          "outbox",
		"transforms.outbox.type":                              "io.debezium.transforms.outbox.EventRouter",
		"transforms.outbox.route.by.field":                    "aggregate_type",
		"transforms.outbox.route.topic.replacement":           orderTopic,
		"transforms.outbox.table.field.event.key":             "aggregate_id",
		"transforms.outbox.table.field.event.type":            "event_type",
		"transforms.outbox.table.field.event.payload":         "event_data",
		"transforms.outbox.table.fields.additional.placement": "event_type:header:event_type",
	}
	producer := map[string]string{"bootstrap.servers": strings.Join(b.brokers, ","), "acks": "all", "enable.idempotence": "true"}
	for name, value := range settings {
		if own, of := strings.CutPrefix(name, "producer."); of {
			producer[own] = value
		} else {
			engine[name] = value
		}
	}
	files := []string{filepath.Join(d.folder, "engine.properties"), filepath.Join(d.folder, "producer.properties")}
	for n, settings := range []map[string]string{engine, producer} {
		var text strings.Builder
		for _, name := range slices.Sorted(maps.Keys(settings)) {
			fmt.Fprintf(&text, "%s=%s\n", name, settings[name])
		}
		if err := os.WriteFile(files[n], []byte(text.String()), 0o600); err != nil {
			return nil, err
		}
	}
	return b.start(ctx, "debezium", exec.CommandContext(ctx, "java", "-Xmx1g", "-XX:+UseParallelGC", //nolint:gosec // our own files
		"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", filepath.Join(d.jars, "*"), d.source, files[0], files[1]))
}

// debeziumJars has Maven fetch the jars into the cache, once.
func (b *bench) debeziumJars(ctx context.Context) (string, error) {
	for _, tool := range []string{"java", "mvn"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "", fmt.Errorf("%w: %w", errNoDebezium, err)
		}
	}
	pom := filepath.Join(b.root, "bench", "debezium", "pom.xml")
	text, err := os.ReadFile(pom)
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "pizzaflow-bench")
	sum := sha256.Sum256(text) // a changed pom.xml is another set of jars
	home := filepath.Join(cache, fmt.Sprintf("debezium-%x", sum[:4]))
	if _, err := os.Stat(home); err == nil { //nolint:gosec // the user's own cache
		return home, nil
	}
	b.say("  fetching Debezium by Maven")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return "", err
	}
	part, err := os.MkdirTemp(cache, "part-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(part) }()                                                                            // after the renaming there is nothing to remove
	mvn := exec.CommandContext(ctx, "mvn", "-q", "-B", "-Dstyle.color=never", "-f", pom, "dependency:copy-dependencies", //nolint:gosec // our own pom.xml
		"-DincludeScope=runtime", "-DoutputDirectory="+part)
	if out, err := mvn.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: Maven could not fetch it: %w: %.500s", errNoDebezium, err, out)
	}
	return home, os.Rename(part, home) //nolint:gosec // the user's own cache
}
