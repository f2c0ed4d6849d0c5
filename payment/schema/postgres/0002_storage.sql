-- +goose Up

-- Rows that are updated several times in their life leave room in their page
-- for it, and what is dead goes soon: it lies where the next due row is looked for.
ALTER TABLE payments SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
ALTER TABLE payment_attempts SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
ALTER TABLE refunds SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
