-- +goose Up

-- To count the dead letters, however many records wait beside them.
CREATE INDEX parked_records_dead ON parked_records (consumer, topic) WHERE state = 'dead';
