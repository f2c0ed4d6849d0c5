-- +goose Up

-- An order is updated in its place as it goes on, and what is dead goes soon: it
-- lies where overdue orders are looked for.
ALTER TABLE orders SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
ALTER TABLE idempotency_keys SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
