// Package load places orders at a running system on a schedule of its own and
// tells how that went.
//
// The load is open: order n has its appointed time, start + n/rate, which no
// answer moves, and latency is counted from that time. A system that stalls
// for a second is therefore seen to stall by every order of that second, and
// not by the few that were on their way.
//
// Every order has one Idempotency-Key before it is first sent. A try that was
// not answered, or with 429 or 5xx, is repeated under that key, each time at the
// next address, until the order is placed, refused, or given up as unknown.
//
// What the system promised is kept in a [Log], on disk before it counts, to be
// compared with what the system's databases hold. It names orders by their ids
// and holds nothing about customers.
package load
