-- +goose Up

-- To find what is old: rows come nearly in the order of their time, so a few
-- bytes for every stretch of the table will do.
CREATE INDEX inbox_events_handled ON inbox_events USING brin (handled_at);

-- To find which record is due next.
CREATE INDEX parked_records_due ON parked_records (consumer, due_at) WHERE state = 'retrying';
