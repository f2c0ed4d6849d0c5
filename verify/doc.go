// Package verify checks whether the promise was kept: it copies evidence from the services' databases, the topics and the
// sandbox into one SQLite file and runs one query on it for each invariant. Each row of a result is a violation.
//
// Some invariants hold at every moment; others, such as "every order is final", only when the system has come to rest, and
// until then a row of their result is in flight. The evidence holds ids, statuses, versions, amounts, checksums and times,
// and no personal data.
package verify
