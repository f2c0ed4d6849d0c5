-- +goose Up

-- One payment for each order. due_at, lease_token and attempts belong to the
-- worker: a row is due when it is to be charged or looked up. calls is the
-- number of its last row in payment_attempts, checks how many lookups found
-- nothing after the payment failed, version how many events it emitted.
-- causation_id is the event that asked for the payment, traceparent its trace.
CREATE TABLE payments (
  id             UUID PRIMARY KEY,
  order_id       UUID NOT NULL UNIQUE,
  amount         BIGINT NOT NULL CHECK (amount > 0),
  currency       TEXT NOT NULL,
  customer_email TEXT NOT NULL,
  causation_id   UUID NOT NULL,
  traceparent    TEXT NOT NULL,
  status         TEXT NOT NULL CHECK (status IN ('pending', 'processing', 'unknown', 'completed', 'failed')),
  transaction_id TEXT,
  error_code     TEXT,
  error_message  TEXT,
  version        BIGINT NOT NULL DEFAULT 0,
  calls          INTEGER NOT NULL DEFAULT 0,
  checks         INTEGER NOT NULL DEFAULT 0,
  created_at     TIMESTAMPTZ NOT NULL,
  updated_at     TIMESTAMPTZ NOT NULL,
  completed_at   TIMESTAMPTZ,
  due_at         TIMESTAMPTZ,
  lease_token    TEXT,
  attempts       INTEGER NOT NULL DEFAULT 0,
  CHECK (status <> 'completed' OR transaction_id IS NOT NULL),
  CHECK ((status = 'failed') = (error_code IS NOT NULL)),
  CHECK ((status IN ('completed', 'failed')) = (completed_at IS NOT NULL)),
  CHECK ((status IN ('completed', 'failed')) = (version > 0)),
  CHECK (status IN ('completed', 'failed') OR due_at IS NOT NULL)
);
CREATE INDEX payments_due ON payments (due_at) WHERE due_at IS NOT NULL;

-- Every call to the provider for a payment, written before it is made. Without
-- an end it is running, or a crash broke it off.
CREATE TABLE payment_attempts (
  payment_id UUID NOT NULL REFERENCES payments (id),
  attempt    INTEGER NOT NULL,
  kind       TEXT NOT NULL CHECK (kind IN ('charge', 'lookup')),
  started_at TIMESTAMPTZ NOT NULL,
  ended_at   TIMESTAMPTZ,
  outcome    TEXT CHECK (outcome IN ('captured', 'declined', 'absent', 'unknown')),
  detail     TEXT,
  PRIMARY KEY (payment_id, attempt),
  CHECK ((ended_at IS NULL) = (outcome IS NULL))
);

-- Money to give back: what was captured for a payment after it failed. The id
-- is the idempotency key.
CREATE TABLE refunds (
  id             UUID PRIMARY KEY,
  payment_id     UUID NOT NULL UNIQUE REFERENCES payments (id),
  transaction_id TEXT NOT NULL,
  amount         BIGINT NOT NULL CHECK (amount > 0),
  currency       TEXT NOT NULL,
  status         TEXT NOT NULL CHECK (status IN ('pending', 'completed')),
  detail         TEXT,
  created_at     TIMESTAMPTZ NOT NULL,
  updated_at     TIMESTAMPTZ NOT NULL,
  completed_at   TIMESTAMPTZ,
  due_at         TIMESTAMPTZ,
  lease_token    TEXT,
  attempts       INTEGER NOT NULL DEFAULT 0,
  CHECK ((status = 'completed') = (completed_at IS NOT NULL)),
  CHECK ((status = 'pending') = (due_at IS NOT NULL))
);
CREATE INDEX refunds_due ON refunds (due_at) WHERE due_at IS NOT NULL;
