-- +goose Up

-- The events, append-only and never updated. seq is the only order the relay
-- knows; AUTOINCREMENT so that no number is ever given twice.
CREATE TABLE outbox_events (
  seq               INTEGER PRIMARY KEY AUTOINCREMENT,
  id                TEXT NOT NULL UNIQUE,
  aggregate_id      TEXT NOT NULL,
  aggregate_version INTEGER,
  event_type        TEXT NOT NULL,
  event_data        TEXT,
  topic             TEXT NOT NULL,
  key               BLOB,
  headers           TEXT NOT NULL,
  value             BLOB,
  created_at        TIMESTAMP NOT NULL,
  UNIQUE (aggregate_id, aggregate_version),
  CHECK (aggregate_version >= 1),
  CHECK ((event_data IS NULL) <> (value IS NULL))
);

-- What is published, as ranges of seq without holes.
CREATE TABLE outbox_published (
  first_seq    INTEGER PRIMARY KEY,
  last_seq     INTEGER NOT NULL CHECK (last_seq >= first_seq),
  published_at TIMESTAMP NOT NULL
);

CREATE VIEW outbox AS
SELECT e.*, (
  SELECT CASE WHEN r.last_seq >= e.seq THEN r.published_at END
  FROM outbox_published r WHERE r.first_seq <= e.seq ORDER BY r.first_seq DESC LIMIT 1
) AS published_at
FROM outbox_events e;

-- Who publishes: one row. renewal counts up while the holder lives; epoch with
-- each take-over. Every seq up to floor is published, blocked or dead.
CREATE TABLE outbox_lease (
  id      INTEGER PRIMARY KEY CHECK (id = 1),
  holder  TEXT NOT NULL,
  epoch   INTEGER NOT NULL,
  renewal INTEGER NOT NULL,
  floor   INTEGER NOT NULL
);
INSERT INTO outbox_lease (id, holder, epoch, renewal, floor) VALUES (1, '', 0, 0, 0);

-- Events the broker refuses for ever, and what follows them under their key.
CREATE TABLE outbox_blocked (
  seq    INTEGER PRIMARY KEY,
  topic  TEXT NOT NULL,
  key    BLOB,
  reason TEXT NOT NULL,
  since  TIMESTAMP NOT NULL
);

-- Which events a consumer group has handled, dead-lettered or parked.
CREATE TABLE inbox_events (
  consumer   TEXT NOT NULL,
  event_id   TEXT NOT NULL,
  handled_at TIMESTAMP NOT NULL,
  PRIMARY KEY (consumer, event_id)
);

-- Records that could not be handled at once, and those behind them.
CREATE TABLE parked_records (
  seq               INTEGER PRIMARY KEY AUTOINCREMENT,
  consumer          TEXT NOT NULL,
  state             TEXT NOT NULL CHECK (state IN ('retrying', 'waiting', 'dead', 'handled', 'discarded')),
  topic             TEXT NOT NULL,
  partition         INTEGER NOT NULL,
  record_offset     INTEGER NOT NULL,
  key               BLOB,
  key_hash          INTEGER, -- to find the key by: an index takes no key of any length
  value             BLOB,
  headers           TEXT NOT NULL,
  event_id          TEXT NOT NULL,
  event_type        TEXT NOT NULL,
  attempts          INTEGER NOT NULL,
  due_at            TIMESTAMP,
  error_class       TEXT NOT NULL,
  error             TEXT NOT NULL,
  first_failed_at   TIMESTAMP,
  last_failed_at    TIMESTAMP,
  finished_at       TIMESTAMP,
  UNIQUE (consumer, event_id)
);
CREATE INDEX parked_records_open ON parked_records (consumer, topic, key_hash, seq) WHERE state IN ('retrying', 'waiting', 'dead');
