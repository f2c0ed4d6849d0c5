-- +goose Up

-- To count what the provider has not answered yet, and find the oldest of it,
-- whatever else there is to do.
CREATE INDEX payments_unanswered ON payments (status, created_at) WHERE status IN ('processing', 'unknown');
