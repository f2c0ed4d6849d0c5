-- +goose Up

-- Which topics the events went to. A topic that has another id, or stands on
-- another cluster, is a new one that lacks everything: see rewind.
CREATE TABLE outbox_topics (
  topic      TEXT PRIMARY KEY,
  cluster_id TEXT NOT NULL,
  topic_id   TEXT NOT NULL,
  since      TIMESTAMPTZ NOT NULL
);

-- What is refused for now, as the relay that leads sees it: for people.
CREATE TABLE outbox_lanes (
  lane     TEXT PRIMARY KEY,
  topic    TEXT NOT NULL,
  waiting  BIGINT NOT NULL,
  reason   TEXT NOT NULL,
  since    TIMESTAMPTZ NOT NULL,
  tried_at TIMESTAMPTZ NOT NULL
);
