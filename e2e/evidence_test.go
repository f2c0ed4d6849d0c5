package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/sqldb"
)

var domain = []string{"order", "payment", "notification"}

// database opens the database of a service.
func (d *deployment) database(ctx context.Context, service string) (*sqldb.DB, error) {
	if d.dbURL == "" {
		return sqldb.Open(ctx, "sqlite:"+filepath.Join(d.dir, service+".db"))
	}
	return sqldb.Open(ctx, d.dbURL+separator(d.dbURL)+"search_path="+service+"_service")
}

func separator(url string) string {
	if strings.Contains(url, "?") {
		return "&"
	}
	return "?"
}

// query runs a statement in a service's database and returns each row as text.
func (d *deployment) query(ctx context.Context, service, statement string, args ...any) (columns []string, rows [][]string, err error) {
	db, err := d.database(ctx, service)
	if err != nil {
		return nil, nil, err
	}
	defer db.Close()
	return queryText(ctx, db, statement, args...)
}

func queryText(ctx context.Context, db *sqldb.DB, statement string, args ...any) (columns []string, rows [][]string, err error) {
	found, err := db.Read().QueryContext(ctx, statement, args...)
	if err != nil {
		return nil, nil, err
	}
	defer found.Close()
	if columns, err = found.Columns(); err != nil {
		return nil, nil, err
	}
	for found.Next() {
		row := make([]any, len(columns))
		for i := range row {
			row[i] = new(any)
		}
		if err := found.Scan(row...); err != nil {
			return nil, nil, err
		}
		texts := make([]string, len(row))
		for i, v := range row {
			texts[i] = asText(*v.(*any))
		}
		rows = append(rows, texts)
	}
	return columns, rows, found.Err()
}

func asText(v any) string {
	switch v := v.(type) {
	case nil:
		return "NULL"
	case []byte:
		return string(v)
	case time.Time:
		return v.UTC().Format(time.RFC3339Nano)
	}
	return fmt.Sprint(v)
}

// rows is query for tests, which ends the test on an error.
func (d *deployment) rows(t *testing.T, service, statement string, args ...any) [][]string {
	t.Helper()
	_, rows, err := d.query(t.Context(), service, statement, args...)
	if err != nil {
		t.Fatalf("%s: %s: %v", service, statement, err)
	}
	return rows
}

// value is the only value of a statement's result.
func (d *deployment) value(t *testing.T, service, statement string, args ...any) string {
	t.Helper()
	rows := d.rows(t, service, statement, args...)
	if len(rows) != 1 || len(rows[0]) != 1 {
		t.Fatalf("%s: %s: %v, want one value", service, statement, rows)
	}
	return rows[0][0]
}

// awaitPublished waits until each event in the view outbox of each database
// has its published_at, and returns how many there are.
func (d *deployment) awaitPublished(t *testing.T, within time.Duration) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for _, service := range domain {
		eventually(t, within, func() string {
			var all, published int
			row := d.rows(t, service, `SELECT COUNT(*), COUNT(published_at) FROM outbox`)[0]
			if _, err := fmt.Sscan(strings.Join(row, " "), &all, &published); err != nil {
				return err.Error()
			}
			counts[service] = all
			if all != published {
				return fmt.Sprintf("%s: %d of %d events have their published_at", service, published, all)
			}
			return ""
		})
	}
	return counts
}

// broker is the addresses of the brokers.
func (d *deployment) broker() []string {
	if len(d.brokers) > 0 {
		return d.brokers
	}
	return []string{d.address("KAFKA_LISTEN")}
}

// records reads a topic from its beginning to its present end.
func (d *deployment) records(t *testing.T, topic string) []*kgo.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	records, err := d.read(ctx, topic)
	if err != nil {
		t.Fatalf("read %s: %v", topic, err)
	}
	return records
}

func (d *deployment) read(ctx context.Context, topic string) ([]*kgo.Record, error) {
	client, err := kgo.NewClient(append(slices.Clip(d.access), kgo.SeedBrokers(d.broker()...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxWait(100*time.Millisecond))...) // a fetch from empty partitions delays those from others
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, err
	}
	left := map[int32]int64{} // the ends of the partitions that are not read to their end
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	var records []*kgo.Record
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("ends not reached of %v: %w", left, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if end, ok := left[r.Partition]; ok && r.Offset < end {
				records = append(records, r)
			}
			if r.Offset >= left[r.Partition]-1 {
				delete(left, r.Partition)
			}
		})
	}
	return records, nil
}

// produce writes a record to a topic, as another program could, and returns it with
// its partition and offset.
func (d *deployment) produce(t *testing.T, r *kgo.Record) *kgo.Record {
	t.Helper()
	client, err := kgo.NewClient(append(slices.Clip(d.access), kgo.SeedBrokers(d.broker()...), kgo.MetadataMinAge(250*time.Millisecond))...)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := client.ProduceSync(ctx, r).FirstErr(); err != nil {
		t.Fatal(err)
	}
	return r
}

// printHistories prints the histories of the orders that printOnFailure was called for.
func (d *deployment) printHistories() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, id := range d.printed {
		d.t.Log(d.history(ctx, id))
	}
}

// history is everything about an order: the answer of the API, the rows in each
// database, the records on each topic.
func (d *deployment) history(ctx context.Context, orderID string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "===== the history of order %s\n", orderID)
	status, body, err := fetch(ctx, d.shop("/api/v1/orders/"+orderID))
	fmt.Fprintf(&b, "GET order: %d %s %v\n", status, body, err)
	paymentID := orderID // matches no other row while there is no payment
	if _, rows, err := d.query(ctx, "payment", `SELECT id FROM payments WHERE order_id = $1`, orderID); err == nil && len(rows) > 0 {
		paymentID = rows[0][0]
	}
	printRows := func(service, statement string, args ...any) {
		columns, rows, err := d.query(ctx, service, statement, args...)
		fmt.Fprintf(&b, "--- %s: %s: %d rows", service, statement, len(rows))
		if err != nil {
			fmt.Fprintf(&b, ": %v", err)
		}
		b.WriteByte('\n')
		for _, row := range rows {
			for i, column := range columns {
				fmt.Fprintf(&b, "%s=%s ", column, row[i])
			}
			b.WriteByte('\n')
		}
	}
	printRows("order", `SELECT * FROM orders WHERE id = $1`, orderID)
	printRows("order", `SELECT * FROM order_items WHERE order_id = $1 ORDER BY line`, orderID)
	printRows("order", `SELECT * FROM order_history WHERE order_id = $1 ORDER BY version`, orderID)
	printRows("payment", `SELECT * FROM payments WHERE order_id = $1`, orderID)
	if paymentID != orderID {
		printRows("payment", `SELECT * FROM payment_attempts WHERE payment_id = $1 ORDER BY attempt`, paymentID)
		printRows("payment", `SELECT * FROM refunds WHERE payment_id = $1`, paymentID)
	}
	printRows("notification", `SELECT * FROM order_contacts WHERE order_id = $1`, orderID)
	printRows("notification", `SELECT * FROM notifications WHERE order_id = $1`, orderID)
	printRows("notification", `SELECT * FROM notification_deliveries WHERE order_id = $1`, orderID)
	for _, service := range domain {
		printRows(service, `SELECT seq, id, aggregate_id, aggregate_version, event_type, topic, event_data, value, created_at, published_at
			FROM outbox WHERE aggregate_id IN ($1, $2) ORDER BY seq`, orderID, paymentID)
		printRows(service, `SELECT * FROM parked_records WHERE key IN ($1, $2) ORDER BY seq`, []byte(orderID), []byte(paymentID))
	}
	d.printRecords(ctx, &b, printRows, orderID)
	return b.String()
}

func (d *deployment) printRecords(ctx context.Context, b *strings.Builder, printRows func(service, statement string, args ...any), orderID string) {
	for _, topic := range topics {
		short, cancel := context.WithTimeout(ctx, 10*time.Second)
		records, err := d.read(short, topic)
		cancel()
		fmt.Fprintf(b, "--- topic %s: %d records in all %v\n", topic, len(records), err)
		for _, r := range records {
			if !strings.Contains(string(r.Key)+string(r.Value), orderID) {
				continue
			}
			fmt.Fprintf(b, "partition %d offset %d key %s %s\n  headers %s\n", r.Partition, r.Offset, r.Key, r.Value, headersText(r))
			if strings.HasSuffix(topic, "-dlq") {
				continue
			}
			for _, service := range domain {
				printRows(service, `SELECT * FROM inbox_events WHERE event_id = $1`, headerOf(r, "ce_id"))
			}
		}
	}
}

func headersText(r *kgo.Record) string {
	var texts []string
	for _, h := range r.Headers {
		texts = append(texts, h.Key+"="+string(h.Value))
	}
	return strings.Join(texts, " ")
}

func headerOf(r *kgo.Record, key string) string {
	for _, h := range r.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}
