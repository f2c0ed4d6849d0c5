-- +goose Up

CREATE TABLE orders (
  id               UUID PRIMARY KEY,
  order_number     TEXT NOT NULL UNIQUE,
  status           TEXT NOT NULL CHECK (status IN ('pending', 'paid', 'payment_failed')),
  version          BIGINT NOT NULL CHECK (version >= 1),
  total_amount     BIGINT NOT NULL CHECK (total_amount > 0), -- minor units
  currency         TEXT NOT NULL,
  customer_name    TEXT NOT NULL,
  customer_email   TEXT NOT NULL,
  customer_phone   TEXT NOT NULL, -- E.164
  delivery_address TEXT NOT NULL,
  comment          TEXT NOT NULL,
  locale           TEXT NOT NULL CHECK (locale IN ('ru', 'en')),
  created_at       TIMESTAMPTZ NOT NULL,
  paid_at          TIMESTAMPTZ,
  payment_id       TEXT,
  failure_reason   TEXT,
  attention_reason TEXT,
  attention_since  TIMESTAMPTZ,
  CHECK ((status = 'paid') = (paid_at IS NOT NULL)),
  CHECK ((status = 'payment_failed') = (failure_reason IS NOT NULL)),
  CHECK ((attention_reason IS NULL) = (attention_since IS NULL))
);
-- for the deadline: pending orders without a mark, and they are few
CREATE INDEX orders_awaiting ON orders (created_at) WHERE status = 'pending' AND attention_reason IS NULL;
CREATE INDEX orders_attention ON orders (attention_reason, attention_since) WHERE attention_reason IS NOT NULL;

CREATE TABLE order_items (
  order_id UUID NOT NULL REFERENCES orders (id),
  line     INTEGER NOT NULL,
  pizza_id UUID NOT NULL,
  name     TEXT NOT NULL, -- as on the menu then, in the order's locale
  size     TEXT NOT NULL CHECK (size IN ('small', 'medium', 'large')),
  quantity INTEGER NOT NULL CHECK (quantity BETWEEN 1 AND 100),
  price    BIGINT NOT NULL CHECK (price > 0), -- of one piece, minor units
  PRIMARY KEY (order_id, line)
);

-- Every status an order took; never updated.
CREATE TABLE order_history (
  order_id UUID NOT NULL REFERENCES orders (id),
  version  BIGINT NOT NULL,
  status   TEXT NOT NULL,
  at       TIMESTAMPTZ NOT NULL,
  PRIMARY KEY (order_id, version)
);

-- Which request a key belongs to, and what it was answered.
CREATE TABLE idempotency_keys (
  key         TEXT PRIMARY KEY,
  body_sha256 BYTEA NOT NULL,
  order_id    UUID NOT NULL REFERENCES orders (id),
  response    BYTEA NOT NULL,
  created_at  TIMESTAMPTZ NOT NULL
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);
