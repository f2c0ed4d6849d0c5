// Package outbox takes events out of one database transaction and puts their
// effect exactly once into another.
//
//	tx { change; Add(event) } ──► outbox_events ──Relay──► topic, key = aggregate id
//	                                                          │
//	tx { inbox; effect; Add(event) } ◄──handler── Consumer ◄──┘
//	                                     │ fails
//	                              parked_records ──► retried ──► <topic>-dlq
//
// What it promises:
//
//   - An event is published if and only if the transaction that added it
//     commits, at least once. Each aggregate's events appear in the order of
//     their versions; after a crash a stretch may be repeated, never skipped.
//   - A handler's effect, and the events it adds, happen exactly once for each
//     consumer group, however often a record arrives.
//   - A record that cannot be handled stops its own key and no other. It is
//     tried again, then stands in the dead letters; what follows under its key
//     waits behind it, in order.
//   - Nothing is dropped silently.
//
// What it needs: a database that keeps what it committed, topics whose number
// of partitions does not change while events are under way, and events that
// are added after their aggregate's row was changed in the same transaction.
//
// The pieces: [Outbox] and [Tx] write events, [Relay] publishes them,
// [Consumer], [On] and [OnBatch] receive them, [Work] makes the calls to the outside that
// a handler must not make itself.
package outbox
