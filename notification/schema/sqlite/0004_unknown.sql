-- +goose Up

-- How many attempts at the delivery ended without an answer after the message was
-- handed over: each of them may have sent it.
ALTER TABLE notification_deliveries ADD COLUMN unknown_attempts INTEGER NOT NULL DEFAULT 0;
