// Package sandbox is the outside world of a pizzeria, simulated over the real
// protocols: a payment provider and an SMS gateway over HTTP, a mail server
// over SMTP, and a page at / that shows the messages and the charges of the
// customers. It knows nothing of the packages that call it.
//
// # Promise
//
// The evidence outlives the process. Ledger, request log, mails and SMS are
// lines of JSON in [Config].Dir, synced before 201, 402, 250 or 202 is
// answered; the items of a list are on disk already. A last line torn by a crash
// is cut off at the next start. All other state is rebuilt from the files:
// idempotency keys, used tags, refunds, late charges and the behaviour. Remove the
// folder to start afresh.
//
// # Payments
//
// POST /payments/charges takes {amount, currency, customer_email,
// order_reference} with an Idempotency-Key, the amount in minor units, and
// answers 201, or 402 for a declined charge. A key belongs to its first
// result for ever: the same request gets it again, if need be when the first
// request is finished; another body under the same key is refused with 422.
// GET /payments/charges[?idempotency_key=…|order_reference=…] is the ledger
// and the lookup. POST /payments/refunds {charge_id, amount} answers 201, or
// 422 if the refunds would exceed the charge. GET /payments/requests is the log of the
// requests for charges, refunds and lookups; status 0 means no answer.
//
// The plus tag of customer_email injects a fault into the charges of this customer
// alone, here of ivan+lost@example.com:
//
//	+declined            402, code card_declined
//	+insufficient_funds  402, code insufficient_funds
//	+error               500, not charged
//	+lost                charged, the connection is cut before the answer
//	+timeout             charged, never answers
//	+hang                not charged, never answers
//	+late                never answers, charged 20 s later, restarts included
//	+slow                charged, answers after 2 s
//
// A tag works once for an order_reference; with -always appended
// (+lost-always) it works on every request. A request under the key of a
// late charge waits for the charge.
//
// PUT /payments/behaviour {latency_ms, decline_rate, error_rate, lost_rate}
// injects faults into all charges, refunds and lookups until the next PUT; GET shows
// it. It does not apply to the whole ledger, the request log and the behaviour itself.
//
// # Messages
//
// The mail server accepts any mail; GET /mail/messages[?to=…] lists the mails decoded,
// with the envelope's sender and recipients. A recipient tagged
// +bounce is refused with 550; one tagged +tempfail with 451, once for each
// address and start, or each time as +tempfail-always.
// POST /sms/messages {to, text, reference} answers 202, and
// GET /sms/messages[?to=…] lists. In ?to= a space stands for a plus. All lists
// are bare JSON arrays, oldest first.
package sandbox
