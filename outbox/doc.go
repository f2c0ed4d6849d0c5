// Package outbox takes events out of one database transaction and puts their
// effect exactly once into another.
//
//	 one transaction                      the topic                    one transaction
//	┌────────────────┐                                               ┌──────────────────┐
//	│ change a row   │            ┌───────┐  key =     ┌──────────┐  │ mark in inbox    │
//	│ Add(event)  ───┼─ outbox ──►│ Relay ├─ aggregate►│ Consumer ├─►│ handler: effect, │
//	└────────────────┘  _events   └───────┘  id        └──────────┘  │ Add(event)       │
//	                                                        │ fails  └──────────────────┘
//	                                                        ▼                 ▲
//	                                                  parked_records ─ again ─┘
//	                                                        │ for the last time
//	                                                        ▼
//	                                                   <topic>-dlq, until it is replayed
//
// # What it promises
//
// Published if and only if committed. Events are rows of the transaction that
// made them true; a row is marked as published only after the broker has
// acknowledged it. Needs: a database that keeps what it committed, and a topic
// that does (acks=all is asked for).
// Shown by TestCrashPoints, TestRelayPublishesWhatIsCommitted,
// TestGapsUnderKills, TestTopicCreatedAnewGetsEverything.
//
// In the order of each aggregate. Records with the same key appear on the topic in
// the order of their versions; after a crash some may appear again, but no record
// appears for the first time before one that precedes it. Needs: the
// aggregate's row is changed before Add in the same transaction, so that its
// lock makes numbers follow commits; a number of partitions that does not
// change while events are under way.
// Shown by TestRelayKeepsTheOrderOfEachKey, TestCursorMissesNothing,
// TestRelayUnderConcurrentWriters, TestStoppedRelaysUnderLoad.
//
// One publisher at a time, replaced within seconds. Of all the relays of one
// database the holder of a lease publishes; a holder that sleeps through the end of
// its lease can repeat records, and never hide one. Needs: clocks that run, not clocks that agree.
// Shown by TestTakeOverWithinSeconds, TestStoppedInMidBatch,
// TestFailOverToALaggingStandby.
//
// Handled exactly once for each group. The mark in the inbox, what the handler
// writes and the events it adds are one transaction; offsets are committed only
// up to the first record that is not done. Needs: a handler that touches nothing but its
// transaction (calls to the outside are for [pizzaflow/job]), and inbox rows that
// outlive the records.
// Shown by TestEffectHappensOnce, TestCrashPoints, TestSimulation.
//
// One bad record stops its own key and nothing else. It is retried, then becomes a
// dead letter; the records that follow under its key wait behind it, in order, and
// come after it when it is replayed. A topic or partition that does not take events
// is paused by itself, and its events wait.
// Shown by TestRetriesKeepTheirDelays, TestRecordsBehindARetriedOneFollowInOrder,
// TestRefusedTopicStopsNobodyElse, TestAbsentLeaderStopsNobodyElse.
//
// Nothing is dropped silently. Each event that is not published and each record
// that is not handled is a row that an [pizzaflow/outbox/admin.Operator] can see and
// mend. While the database is away, or a service that a handler needs, the records
// wait, which costs no attempt.
// Shown by TestOperatorMendsABlockedKey, TestOperatorReplaysAndDiscards,
// TestUnavailableSpendsNothing, TestSkippedRecordsRaiseTheAlarm.
//
// # The packages
//
// This package writes events: [Outbox] and [Tx]. [pizzaflow/outbox/relay] publishes
// them, [pizzaflow/outbox/inbox] receives them, and [pizzaflow/outbox/admin] is for
// an operator who has to mend something. [pizzaflow/job] makes the calls to the
// outside that a handler must not make itself, and knows nothing of an outbox. The
// tables are a set of migrations, [Schema], for a database opened by
// [pizzaflow/sqldb].
//
// Read outbox.go (Event, Outbox, Tx), then trace.go (the trace that an event
// carries), numbering.go (a database whose sequence begins anew) and initialrows.go.
// Shared with the other packages of the library, and closed to adopters, are
// internal/wire (the form of a record), internal/store (rows, states and SQL) and
// internal/handoff (committed events on their way to the relay in memory).
package outbox
