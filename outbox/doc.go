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
// In the order of each aggregate. What has the same key appears on the topic in
// the order of its versions; after a crash a stretch may appear again, but
// nothing appears for the first time before what precedes it. Needs: the
// aggregate's row is changed before Add in the same transaction, so that its
// lock makes numbers follow commits; a number of partitions that does not
// change while events are under way.
// Shown by TestRelayKeepsTheOrderOfEachKey, TestCursorMissesNothing,
// TestRelayUnderConcurrentWriters, TestStoppedRelaysUnderLoad.
//
// One publisher at a time, replaced within seconds. Of all the relays of one
// database the holder of a lease publishes; one that sleeps through its end can
// repeat, and never hide. Needs: clocks that run, not clocks that agree.
// Shown by TestTakeOverWithinSeconds, TestStoppedInMidRound,
// TestFailOverToALaggingStandby.
//
// Handled exactly once for each group. The mark in the inbox, what the handler
// writes and the events it adds are one transaction; offsets are committed only
// below everything that is done. Needs: a handler that touches nothing but its
// transaction (calls to the outside are for the package job), and inbox rows that outlive
// the records.
// Shown by TestEffectHappensOnce, TestCrashPoints, TestSimulation.
//
// One bad record stops its own key and nothing else. It is tried again, then
// stands in the dead letters; what follows under its key waits behind it, in
// order, and comes after it when it is replayed. What the broker refuses waits
// in a lane of its partition or topic.
// Shown by TestRetriesKeepTheirDelays, TestRecordsBehindARetriedOneFollowInOrder,
// TestRefusedTopicStopsNobodyElse, TestAbsentLeaderStopsNobodyElse.
//
// Nothing is dropped silently. Whatever is not published or not handled is a
// row that an [pizzaflow/outbox/admin.Operator] sees and can mend. What is away, the database or what a
// handler needs, is waited for and costs no attempt.
// Shown by TestOperatorMendsABlockedKey, TestOperatorReplaysAndDiscards,
// TestUnavailableSpendsNothing, TestSkippedRecordsRaiseTheAlarm.
//
// # The pieces
//
// This package writes events: [Outbox] and [Tx]. Package relay publishes them,
// package inbox receives them, and package admin is for who has to mend
// something. Package job makes the calls to the outside that a handler must not
// make itself. The tables are a set of migrations, [Schema], for a database
// opened by sqldb.
package outbox
