-- +goose Up

-- To find which record is due next. What is old is found by the order of the
-- rows.
CREATE INDEX parked_records_due ON parked_records (consumer, due_at) WHERE state = 'retrying';
