// Package ops is a system in the hands of its operator, running or stopped: the outboxes and dead letters of its services,
// by command and over HTTP; the check on live data that the promise was kept; the move from SQLite to PostgreSQL.
//
// It names no service: the table of their databases is given to it.
package ops
