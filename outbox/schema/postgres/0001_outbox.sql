-- +goose Up

-- The events, append-only and never updated. seq is the only order the relay
-- knows; CACHE 1 because a session that keeps numbers back would draw them
-- outside of the row locks that make seq follow the commits of an aggregate.
CREATE TABLE outbox_events (
  seq               BIGINT GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
  id                UUID NOT NULL UNIQUE,
  aggregate_id      TEXT NOT NULL,
  aggregate_version BIGINT,
  event_type        TEXT NOT NULL,
  event_data        JSON,
  topic             TEXT NOT NULL,
  key               BYTEA,
  headers           JSON NOT NULL,
  value             BYTEA,
  created_at        TIMESTAMPTZ NOT NULL,
  UNIQUE (aggregate_id, aggregate_version),
  CHECK (aggregate_version >= 1),
  CHECK ((event_data IS NULL) <> (value IS NULL))
);

-- What is published, as ranges of seq without holes.
CREATE TABLE outbox_published (
  first_seq    BIGINT PRIMARY KEY,
  last_seq     BIGINT NOT NULL CHECK (last_seq >= first_seq),
  published_at TIMESTAMPTZ NOT NULL
);

CREATE VIEW outbox AS
SELECT e.*, p.published_at
FROM outbox_events e
LEFT JOIN LATERAL (
  SELECT CASE WHEN r.last_seq >= e.seq THEN r.published_at END AS published_at
  FROM outbox_published r WHERE r.first_seq <= e.seq ORDER BY r.first_seq DESC LIMIT 1
) p ON true;

-- Who publishes: one row. renewal counts up while the holder lives; epoch with
-- each take-over. Every seq up to floor is published, blocked or dead.
CREATE TABLE outbox_lease (
  id      SMALLINT PRIMARY KEY CHECK (id = 1),
  holder  TEXT NOT NULL,
  epoch   BIGINT NOT NULL,
  renewal BIGINT NOT NULL,
  floor   BIGINT NOT NULL
);
INSERT INTO outbox_lease (id, holder, epoch, renewal, floor) VALUES (1, '', 0, 0, 0);

-- Events the broker refuses for ever, and what follows them under their key.
CREATE TABLE outbox_blocked (
  seq    BIGINT PRIMARY KEY,
  topic  TEXT NOT NULL,
  key    BYTEA,
  reason TEXT NOT NULL,
  since  TIMESTAMPTZ NOT NULL
);

-- Which events a consumer group has handled, dead-lettered or parked.
CREATE TABLE inbox_events (
  consumer   TEXT NOT NULL,
  event_id   UUID NOT NULL,
  handled_at TIMESTAMPTZ NOT NULL,
  PRIMARY KEY (consumer, event_id)
);

-- Records that could not be handled at once, and those behind them.
CREATE TABLE parked_records (
  seq               BIGINT GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
  consumer          TEXT NOT NULL,
  state             TEXT NOT NULL CHECK (state IN ('retrying', 'waiting', 'dead', 'handled', 'discarded')),
  topic             TEXT NOT NULL,
  partition         INTEGER NOT NULL,
  record_offset     BIGINT NOT NULL,
  key               BYTEA,
  key_hash          BIGINT, -- to find the key by: an index takes no key of any length
  value             BYTEA,
  headers           JSON NOT NULL,
  event_id          UUID NOT NULL,
  event_type        TEXT NOT NULL,
  attempts          INTEGER NOT NULL,
  due_at            TIMESTAMPTZ,
  error_class       TEXT NOT NULL,
  error             TEXT NOT NULL,
  first_failed_at   TIMESTAMPTZ,
  last_failed_at    TIMESTAMPTZ,
  finished_at       TIMESTAMPTZ,
  UNIQUE (consumer, event_id)
);
CREATE INDEX parked_records_open ON parked_records (consumer, topic, key_hash, seq) WHERE state IN ('retrying', 'waiting', 'dead');
