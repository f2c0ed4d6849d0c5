-- +goose Up

-- The index takes its time on a large table, and no role is to cut it short.
SET LOCAL statement_timeout = 0;

-- Whoever writes waits behind the lock on the events once it is asked for. While
-- somebody reads them for long, a dump, it is asked for now and then instead.
SET LOCAL lock_timeout = '2s';

-- Versions count within an aggregate and a topic: order 1 and customer 1 are two
-- aggregates. The aggregate comes first because people look events up by it.
ALTER TABLE outbox_events
  ADD CONSTRAINT outbox_events_version UNIQUE (aggregate_id, topic, aggregate_version),
  DROP CONSTRAINT outbox_events_aggregate_id_aggregate_version_key;

-- To find which ranges are old enough to be deleted, and what was published
-- since the broker was last known to be whole.
CREATE INDEX outbox_published_at ON outbox_published (published_at, first_seq);

-- To find the keys that are blocked, and the skipped events that are old,
-- among all that were ever skipped.
CREATE INDEX outbox_blocked_open ON outbox_blocked (seq) WHERE skipped_at IS NULL;
CREATE INDEX outbox_blocked_skipped ON outbox_blocked (skipped_at, seq) WHERE skipped_at IS NOT NULL;

-- Rows that change all the time leave room in their page for the next version
-- of themselves, and what is dead goes soon.
ALTER TABLE outbox_lease SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE outbox_lanes SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
ALTER TABLE outbox_published SET (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
ALTER TABLE outbox_events SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
ALTER TABLE inbox_events SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
ALTER TABLE parked_records SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
