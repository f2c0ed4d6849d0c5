package outbox_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/outbox"
	"pizzaflow/outbox/inbox"
	"pizzaflow/outbox/relay"
	"pizzaflow/sqldb"
)

// An event names itself: its type, its topic, and the aggregate it is about.
type SeatBooked struct {
	Show string `json:"show"`
	Seat int    `json:"seat"`
}

func (SeatBooked) EventType() string     { return "SeatBooked" }
func (SeatBooked) Topic() string         { return "bookings" }
func (e SeatBooked) AggregateID() string { return e.Show }

func Example() {
	ctx, stop := context.WithCancel(context.Background())
	url, brokers := somewhere("bookings", "bookings-dlq") // sqlite:… or postgres://…; host:port
	db, err := sqldb.Open(ctx, url)                       // one for each service
	check(err)                                            //
	check(db.Migrate(ctx, "outbox", outbox.Schema))       // beside the service's own tables
	out, opts := outbox.New(db, "/box-office"), []kgo.Opt{kgo.SeedBrokers(brokers...)}
	relay := relay.New(relay.Config{Outbox: out, Service: "box-office", Kafka: opts, Log: slog.Default()})
	tickets := inbox.New(inbox.Config{Outbox: out, Group: "tickets", Kafka: opts, Log: slog.Default()})

	_, err = db.Exec(`CREATE TABLE shows (id TEXT PRIMARY KEY, version BIGINT); CREATE TABLE printed (seat BIGINT)`)
	check(err)
	printed := make(chan int, 1)
	inbox.On(tickets, func(ctx context.Context, tx *outbox.Tx, d inbox.Delivery[SeatBooked]) error {
		tx.AfterCommit(func() { printed <- d.Event.Seat }) // the insert happens once, however often the event arrives
		_, err := tx.ExecContext(ctx, `INSERT INTO printed (seat) VALUES ($1)`, d.Event.Seat)
		return err
	})
	ended := make(chan error, 2)
	go func() { ended <- relay.Run(ctx) }()
	go func() { ended <- tickets.Run(ctx) }()

	err = out.Tx(ctx, func(tx *outbox.Tx) error { // the change and its event: both or neither
		var version int64
		err := tx.QueryRowContext(ctx, `INSERT INTO shows (id, version) VALUES ($1, 1)
			ON CONFLICT (id) DO UPDATE SET version = shows.version + 1 RETURNING version`, "Hamlet").Scan(&version)
		tx.Add(version, SeatBooked{Show: "Hamlet", Seat: 12})
		return err
	})
	check(err)
	fmt.Println("printed seat", <-printed)
	stop() // what has begun is finished, offsets are committed, the lease is given back
	for range 2 {
		check(<-ended)
	}
	// Output: printed seat 12
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
