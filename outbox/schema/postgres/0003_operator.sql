-- +goose Up

-- An event that an operator has given up: done with, and in nobody's way.
ALTER TABLE outbox_blocked ADD COLUMN skipped_at TIMESTAMPTZ;

-- What operators did, and why.
CREATE TABLE operator_actions (
  id       BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at       TIMESTAMPTZ NOT NULL,
  operator TEXT NOT NULL,
  action   TEXT NOT NULL,
  target   TEXT NOT NULL,
  reason   TEXT NOT NULL,
  affected BIGINT NOT NULL
);
