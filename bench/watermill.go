package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	wkafka "github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	wsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"pizzaflow/sqldb"
)

// Watermill's outbox is a table that its SQL publisher writes in the caller's
// transaction and its forwarder reads and publishes again.

const watermillTopic = "forwarder"

// watermillSchema is tuned by the one knob that its documentation has for
// throughput, how many messages one query takes; it is 100 by default.
func watermillSchema(defaults bool) wsql.DefaultPostgreSQLSchema {
	if defaults {
		return wsql.DefaultPostgreSQLSchema{}
	}
	return wsql.DefaultPostgreSQLSchema{SubscribeBatchSize: 1000}
}

// makeWatermill makes its tables.
func makeWatermill(db *sqldb.DB) error {
	sub, err := wsql.NewSubscriber(wsql.BeginnerFromStdSQL(db.DB), wsql.SubscriberConfig{
		SchemaAdapter: watermillSchema(false), OffsetsAdapter: wsql.DefaultPostgreSQLOffsetsAdapter{},
	}, nil)
	if err != nil {
		return err
	}
	return sub.SubscribeInitialize(watermillTopic)
}

func fillWatermill(ctx context.Context, url string, items []item) (err error) {
	db, err := sqldb.Open(ctx, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := makeWatermill(db); err != nil {
		return err
	}
	// A thousand messages a transaction: COPY would need their transaction's id.
	return sqldb.Chunks(len(items), 1000, func(from, to int) error {
		return db.Tx(ctx, func(tx *sql.Tx) error { return watermillPublish(tx, items[from:to]...) })
	})
}

// watermillPublish writes messages into the outbox in the caller's transaction.
func watermillPublish(tx *sql.Tx, items ...item) error {
	publisher, err := wsql.NewPublisher(wsql.TxFromStdSQL(tx), wsql.PublisherConfig{SchemaAdapter: watermillSchema(false)}, nil)
	if err != nil {
		return err
	}
	outer := forwarder.NewPublisher(publisher, forwarder.PublisherConfig{ForwarderTopic: watermillTopic})
	messages := make([]*message.Message, len(items))
	for n, i := range items {
		messages[n] = message.NewMessage(newID(), []byte(i.payload()))
		messages[n].Metadata.Set("key", i.id())
	}
	return outer.Publish(orderTopic, messages...)
}

// playWatermill is Watermill's forwarder from PostgreSQL to Kafka.
func playWatermill(ctx context.Context, text json.RawMessage, ready func(any) error) (_ any, err error) {
	var order relayOrder
	if err := json.Unmarshal(text, &order); err != nil {
		return nil, err
	}
	pool, err := pgxpool.New(ctx, order.URL)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	config := wsql.SubscriberConfig{
		SchemaAdapter: watermillSchema(order.Defaults), OffsetsAdapter: wsql.DefaultPostgreSQLOffsetsAdapter{}, InitializeSchema: true,
	}
	if !order.Defaults {
		config.PollInterval = 10 * time.Millisecond // 1 s by default
	}
	subscriber, err := wsql.NewSubscriber(wsql.BeginnerFromPgx(pool), config, nil)
	if err != nil {
		return nil, err
	}
	producer := wkafka.DefaultSaramaSyncPublisherConfig()
	producer.Producer.RequiredAcks = sarama.WaitForAll // as everybody here
	publisher, err := wkafka.NewPublisher(wkafka.PublisherConfig{
		Brokers: order.Brokers, OverwriteSaramaConfig: producer,
		Marshaler: wkafka.NewWithPartitioningMarshaler(func(_ string, m *message.Message) (string, error) { return m.Metadata.Get("key"), nil }),
	}, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, publisher.Close()) }()
	f, err := forwarder.NewForwarder(subscriber, publisher, watermill.NopLogger{}, forwarder.Config{
		ForwarderTopic: watermillTopic, CloseTimeout: 5 * time.Second,
	})
	if err != nil {
		return nil, err
	}
	if err := ready(nil); err != nil {
		return nil, err
	}
	if err := f.Run(ctx); err != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("forward: %w", err)
	}
	return nil, nil
}
