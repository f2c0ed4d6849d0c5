// Package job makes durable calls to the outside for rows of one's own tables.
// The rows are the queue: they outlive the process, and any number of processes
// may take them, each row under a lease.
//
// A row is a job while its due_at is not null. A [Worker] takes due rows from
// the table, or is handed them by the transaction that inserts them ([Lease]),
// and runs [Config].Do for each. The package knows nothing of events: an outbox
// is one of the transactions that can hand a row over ([Committer]).
//
// Read config.go (what an adopter gives and gets), then worker.go (Run, and
// how a call starts and ends), take.go (rows found in the table), lease.go
// (rows handed over, renewal), takeover.go (rows of dead processes) and clock.go
// (a database clock that is set).
package job
