-- +goose Up

-- Each channel takes what is due on its own, so that many messages that wait
-- for one are not in the way of the other.
DROP INDEX notification_deliveries_due;
CREATE INDEX notification_deliveries_due_by_channel ON notification_deliveries (channel, due_at) WHERE due_at IS NOT NULL;
