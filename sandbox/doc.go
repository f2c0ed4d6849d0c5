// Package sandbox is the outside world of a pizzeria, simulated over the real
// protocols: a payment provider and an SMS gateway over HTTP, a mail server
// over SMTP, and a page at / that shows what the customers received and what
// they were charged. It knows nothing of the packages that call it.
//
// # Promise
//
// The evidence outlives the process. Ledger, request log, mails and SMS are
// lines of JSON in [Config].Dir, synced before 201, 402, 250 or 202 is
// answered; what a list shows is already on disk. A last line torn by a crash
// is cut off at the next start. Everything else is rebuilt from the files:
// idempotency keys, used tags, refunds, charges that are still to come, and
// the behaviour. Remove the folder to begin anew.
//
// # Payments
//
// POST /payments/charges takes {amount, currency, customer_email,
// order_reference} with an Idempotency-Key, the amount in minor units, and
// answers 201, or 402 for a declined charge. A key belongs to its first
// result for ever: the same request gets it again, at once or as soon as the
// first is done; another body under the same key is refused with 422.
// GET /payments/charges[?idempotency_key=…|order_reference=…] is the ledger
// and the lookup. POST /payments/refunds {charge_id, amount} answers 201, or
// 422 above what was captured. GET /payments/requests is the raw log of the
// charges, refunds and lookups asked for; status 0 means nothing was answered.
//
// The plus tag of customer_email decides how a charge request fares, so that
// ivan+lost@example.com orders trouble for himself alone:
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
// charge that is still to come (+late) waits for it.
//
// PUT /payments/behaviour {latency_ms, decline_rate, error_rate, lost_rate}
// disturbs all traffic of charges, refunds and lookups until it is put again;
// GET shows it. The whole ledger, the request log and the behaviour itself are
// always told undisturbed.
//
// # Messages
//
// The mail server takes anything for anybody; GET /mail/messages[?to=…] lists
// it decoded, with the envelope's sender and recipients. A recipient tagged
// +bounce is refused with 550; one tagged +tempfail with 451, once for each
// address and start, or each time as +tempfail-always.
// POST /sms/messages {to, text, reference} answers 202, and
// GET /sms/messages[?to=…] lists. In ?to= a space stands for a plus. All lists
// are bare JSON arrays, oldest first.
package sandbox
