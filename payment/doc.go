// Package payment charges once for every order, whatever happens.
//
// It owns the tables payments (one for each order), payment_attempts (every
// call made for a payment) and refunds. It consumes OrderCreated and emits,
// for each payment, one PaymentCompleted or one PaymentFailed. It serves no
// routes.
//
// An order's event only leaves an intent: a pending row. A worker charges it
// with no transaction open, and what it may rely on is written down before:
//
//   - The attempt is committed before the provider is called, so that a crash
//     leaves a payment that is processing, never one that looks untouched.
//   - A payment keeps one idempotency key, its id, for life.
//   - An answer that did not come or makes no sense is unknown. It is resolved
//     by asking the provider under that key, never by charging under another
//     and never by calling it declined.
//   - Where the provider has nothing it is charged again under the same key,
//     until the payment is older than its TTL, and once after that: what makes
//     it old may be a clock. If there is nothing even then the payment fails as
//     provider_unavailable. Nothing is charged again when the provider may have
//     forgotten the key. While the provider does not
//     answer, the payment stays unknown and is asked for again.
//   - A payment that failed that way is looked up for another day. Money found
//     then is given back, as durable as a charge.
//
// The provider stands behind [Provider], chosen by the scheme of a URL. It has
// to honour idempotency keys and to find a charge by its key.
package payment
