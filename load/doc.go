// Package load places orders at a running system on a schedule of its own and
// reports the results.
//
// The load is open: order n has its scheduled time, start + n/rate, which no answer
// moves, and its latency is counted from that time. So a system that stalls for a
// second adds latency to every order of that second, not only to the few that were
// under way.
//
// Every order has one Idempotency-Key before it is first sent. A try without an answer,
// or answered 429 or 5xx, is repeated under that key, each time at the next address,
// until the order is placed, refused, or given up as unknown.
//
// The promises of the system are kept in a [Log], each on disk before it counts, to be
// compared with the system's databases. The log has the ids of orders and no data of
// customers.
package load
