-- +goose Up

-- Which topics the events went to. A topic that has another id, or stands on
-- another cluster, is a new one that lacks everything: see rewind.
CREATE TABLE outbox_topics (
  topic      TEXT PRIMARY KEY,
  cluster_id TEXT NOT NULL,
  topic_id   TEXT NOT NULL,
  since      TIMESTAMP NOT NULL
);
