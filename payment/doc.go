// Package payment charges once for every order, even when processes, servers or
// connections fail.
//
// It owns the tables payments (one for each order), payment_attempts (every
// call made for a payment) and refunds. It consumes OrderCreated and emits,
// for each payment, one PaymentCompleted or one PaymentFailed. It serves no
// routes.
//
// The handler of an order's event stores the payment, and a worker charges it with no
// transaction open:
//
//   - The attempt is committed before the provider is called, so that a crash
//     leaves a payment that is processing, never a pending one.
//   - A payment keeps one idempotency key, its id, for life.
//   - A payment whose answer did not come or makes no sense is unknown. It is
//     resolved by a lookup under that key, never by a charge under another one, and
//     never by calling it declined.
//   - While the provider has no charge under the key, the payment is charged again
//     under the same key, until it is older than its TTL, and once after that: it
//     may be old only because a clock was set. If there is still no charge, the
//     payment fails as provider_unavailable. It is not charged again when the
//     provider may have forgotten the key. While the provider does not answer, the
//     payment stays unknown and is looked up again.
//   - A payment that failed as provider_unavailable is looked up for another day.
//     Money found then is refunded, by rows that are as durable as the payment.
//
// The provider stands behind [Provider], chosen by the scheme of a URL. It has
// to honour idempotency keys and to find a charge by its key.
package payment
