-- +goose Up

-- Versions count within an aggregate and a topic: order 1 and customer 1 are two
-- aggregates. The aggregate comes first because people look events up by it.
-- SQLite takes no constraint away, so the table is made anew. It must not give
-- a number again that it ever gave, whatever rows are left.
CREATE TABLE outbox_events_new (
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
  UNIQUE (aggregate_id, topic, aggregate_version),
  CHECK (aggregate_version >= 1),
  CHECK ((event_data IS NULL) <> (value IS NULL))
);
INSERT INTO outbox_events_new (seq, id, aggregate_id, aggregate_version, event_type, event_data, topic, key, headers, value, created_at)
SELECT seq, id, aggregate_id, aggregate_version, event_type, event_data, topic, key, headers, value, created_at FROM outbox_events ORDER BY seq;
DELETE FROM sqlite_sequence WHERE name = 'outbox_events_new';
INSERT INTO sqlite_sequence (name, seq) SELECT 'outbox_events_new', seq FROM sqlite_sequence WHERE name = 'outbox_events';
DROP VIEW outbox;
DROP TABLE outbox_events;
ALTER TABLE outbox_events_new RENAME TO outbox_events;
CREATE VIEW outbox AS
SELECT e.*, (
  SELECT CASE WHEN r.last_seq >= e.seq THEN r.published_at END
  FROM outbox_published r WHERE r.first_seq <= e.seq ORDER BY r.first_seq DESC LIMIT 1
) AS published_at
FROM outbox_events e;

-- To find which ranges are old enough to be deleted, and what was published
-- since the broker was last known to be whole.
CREATE INDEX outbox_published_at ON outbox_published (published_at, first_seq);

-- To find the keys that are blocked, and the skipped events that are old,
-- among all that were ever skipped.
CREATE INDEX outbox_blocked_open ON outbox_blocked (seq) WHERE skipped_at IS NULL;
CREATE INDEX outbox_blocked_skipped ON outbox_blocked (skipped_at, seq) WHERE skipped_at IS NOT NULL;
