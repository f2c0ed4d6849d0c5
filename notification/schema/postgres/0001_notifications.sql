-- +goose Up

-- Whom to tell, from OrderCreated. Its row is what both handlers lock first; a
-- payment event that arrives first makes it without contacts.
CREATE TABLE order_contacts (
  order_id         UUID PRIMARY KEY,
  name             TEXT,
  email            TEXT,
  phone            TEXT,
  locale           TEXT,
  order_number     TEXT, -- null: OrderCreated has not arrived
  total            BIGINT,
  currency         TEXT,
  items            JSON,
  delivery_address TEXT,
  created_at       TIMESTAMPTZ NOT NULL
);

-- What to tell. waiting: for the contacts; ready: its deliveries are there.
CREATE TABLE notifications (
  id         UUID PRIMARY KEY,
  order_id   UUID NOT NULL REFERENCES order_contacts (order_id),
  type       TEXT NOT NULL CHECK (type IN ('order_confirmation', 'payment_confirmation', 'payment_failed')),
  status     TEXT NOT NULL CHECK (status IN ('waiting', 'ready')),
  data       JSON NOT NULL,
  created_at TIMESTAMPTZ NOT NULL,
  UNIQUE (order_id, type)
);

-- One message by one channel. due_at: the next attempt, or the end of the
-- running one's lease; null when nothing is left to do.
CREATE TABLE notification_deliveries (
  id                  UUID PRIMARY KEY,
  notification_id     UUID NOT NULL REFERENCES notifications (id),
  order_id            UUID NOT NULL,
  type                TEXT NOT NULL,
  channel             TEXT NOT NULL CHECK (channel IN ('email', 'sms')),
  status              TEXT NOT NULL CHECK (status IN ('pending', 'sent', 'failed')),
  attempts            INTEGER NOT NULL DEFAULT 0,
  due_at              TIMESTAMPTZ,
  lease_token         TEXT,
  provider_message_id TEXT,
  error               TEXT,
  created_at          TIMESTAMPTZ NOT NULL,
  sent_at             TIMESTAMPTZ,
  UNIQUE (notification_id, channel),
  CHECK ((status = 'pending') = (due_at IS NOT NULL)),
  CHECK ((status = 'sent') = (sent_at IS NOT NULL))
);
CREATE INDEX notification_deliveries_due ON notification_deliveries (due_at) WHERE due_at IS NOT NULL;
