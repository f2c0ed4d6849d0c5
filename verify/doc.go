// Package verify looks whether the promise was kept: it copies evidence from
// the services' databases, the topics and the sandbox into one SQLite file and
// asks it one question for each invariant. A row that comes back is a
// violation.
//
// Some invariants hold at every moment; others, such as "every order is final",
// only when the system has come to rest, and until then what they find is in
// flight. The evidence holds ids, statuses, versions, amounts, sums and times,
// and nothing about customers.
package verify
