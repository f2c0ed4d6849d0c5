package e2e

import (
	"fmt"
	"strings"
	"testing"

	"pizzaflow/sqldb"
)

// TestNumbersBehind restarts the identity sequences of all tables below the numbers of
// their rows, as they are after a dump that was restored in parts, or a replica that
// was promoted: with the rows kept, with the rows pruned, and while the services run.
// Every accepted order is published.
func TestNumbersBehind(t *testing.T) {
	t.Parallel()
	d := deploy(t, setup{engine: sqldb.Postgres, behind: true})
	s := d.startStream(t, 10)
	s.awaitServed(t, paidLimit)
	s.pause(t)
	d.awaitSettled(t, len(s.orders))

	for _, prune := range []bool{false, true} {
		name := map[bool]string{false: "rows kept", true: "rows pruned"}[prune]
		t.Run(name, func(t *testing.T) {
			d.stop()
			d.renumber(t, prune)
			d.start("")
			s.resume()
			s.awaitServed(t, backLimit)
			s.pause(t)
			d.awaitSettled(t, len(s.orders))
		})
		t.Run(name+", while running", func(t *testing.T) {
			d.db.Cut()
			s.resume()
			s.awaitRefused(t, 1)
			d.renumber(t, prune)
			d.db.Lead(hostOf(t, d.dbURL))
			s.awaitServed(t, backLimit)
			s.pause(t)
			d.awaitSettled(t, len(s.orders))
		})
	}
	s.finish(t)
}

// renumber restarts all identity sequences, and with prune deletes the published
// events with their ranges, as the relay does after a week.
func (d *deployment) renumber(t *testing.T, prune bool) {
	t.Helper()
	for _, service := range domain {
		if prune {
			execute(t, d.dbURL, `SET search_path = `+service+`_service`,
				`DELETE FROM outbox_events e USING outbox_published p WHERE e.seq BETWEEN p.first_seq AND p.last_seq AND e.seq <= (SELECT floor FROM outbox_lease)`,
				`DELETE FROM outbox_published WHERE last_seq <= (SELECT floor FROM outbox_lease)`)
		}
	}
	rows := d.rows(t, "order", `SELECT table_schema, table_name, column_name FROM information_schema.columns WHERE is_identity = 'YES' AND table_schema LIKE '%_service'`)
	if len(rows) < 3*len(domain) {
		t.Fatalf("%d identity columns: %v", len(rows), rows)
	}
	for _, row := range rows {
		execute(t, d.dbURL, fmt.Sprintf(`ALTER TABLE %s.%s ALTER %s RESTART`, row[0], row[1], row[2]))
	}
}

// TestOtherEncoding has databases in other encodings than UTF-8, which would change
// the texts of customers. The process does not start.
func TestOtherEncoding(t *testing.T) {
	t.Parallel()
	for _, encoding := range []string{"WIN1251", "SQL_ASCII"} {
		url := databaseOn(t, databaseServer(t), "ENCODING '"+encoding+"' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
		said := startsNot(t, setup{engine: sqldb.Postgres, own: &ownServers{database: url}})
		if !strings.Contains(said, encoding) || !strings.Contains(said, "UTF8") {
			t.Errorf("it does not say that the encoding is %s and must be UTF8:\n%s", encoding, said)
		}
	}
}
