package verify

// What evidence an invariant needs besides the databases.
const (
	needsLog         = "the log of pizza load"
	needsTopics      = "the topics"
	needsDeadLetters = "the dead-letter topics"
	needsSandbox     = "the sandbox"
)

// An invariant is one query on the evidence. Each row of its result is a violation, identified by the first column.
type invariant struct {
	name, says string
	needs      string
	atRest     bool // holds only when the system has come to rest
	query      string
}

// settledBy is a while before the collection began: payments and messages of that time and before are in every source,
// whichever was read first.
const settledBy = `(SELECT at - 5000000 FROM began)`

// tooYoung counts the payments and messages of later than settledBy, up to the time $1: a time after that is of a clock
// that is ahead.
const tooYoung = `SELECT (SELECT COUNT(*) FROM orders WHERE paid_at BETWEEN ` + settledBy + ` AND $1)
	+ (SELECT COUNT(*) FROM deliveries WHERE sent_at BETWEEN ` + settledBy + ` AND $1)`

// remembered is since when the inboxes know all events that were handled: they forget after 15 days, however long a topic
// retains its records.
const remembered = `(SELECT at - 14 * 86400000000 FROM began)`

// Since when a service has all rows of its events, and a topic all its records: rows of published events are pruned after a
// week, and records when the topic's retention is over. Nothing older is asked about. Each wants a service or topic, and ")".
const (
	rowsRetainedSince    = `(SELECT since FROM retained WHERE retained.service = `
	recordsRetainedSince = `(SELECT MAX(retained_since) FROM partitions p WHERE p.topic = `
)

// invariants are all of them, in the order in which they are shown.
var invariants = []invariant{
	// acceptance
	{
		name: "promised orders exist", says: "every order that was answered with 201 is there", needs: needsLog,
		query: `SELECT p.order_id FROM promised p LEFT JOIN orders o ON o.id = p.order_id WHERE o.id IS NULL`,
	},
	{
		name: "promised totals hold", says: "and costs what was answered", needs: needsLog,
		query: `SELECT p.order_id FROM promised p JOIN orders o ON o.id = p.order_id WHERE p.total <> 0 AND o.total <> p.total`,
	},
	{
		name: "one order for a key", says: "an Idempotency-Key stands for one order, and no order of pizza load is without", // keys are deleted after a day
		query: `SELECT p.key FROM promised p JOIN keys k ON k.key = p.key WHERE k.order_id <> p.order_id
			UNION SELECT key FROM promised GROUP BY key HAVING COUNT(DISTINCT order_id) > 1
			UNION SELECT o.id FROM orders o WHERE o.loaded = 1 AND o.created_at > (SELECT at FROM began) - 23 * 3600 * 1000000
				AND NOT EXISTS (SELECT 1 FROM keys k WHERE k.order_id = o.id)`,
	},
	{
		name: "totals add up", says: "an order costs what its items cost",
		query: `SELECT o.id FROM orders o LEFT JOIN items i ON i.order_id = o.id WHERE i.total IS NULL OR i.total <> o.total`,
	},
	{
		name: "orders have their event", says: "an order and its OrderCreated are stored together",
		query: `SELECT o.id FROM orders o WHERE o.created_at >= ` + rowsRetainedSince + `'order') AND 1 <>
			(SELECT COUNT(*) FROM events e WHERE e.aggregate = o.id AND e.type = 'OrderCreated' AND e.service = 'order')`,
	},
	// state
	{
		name: "histories are whole", says: "an order's history has its versions 1 to n and ends with what it is",
		query: `SELECT o.id FROM orders o LEFT JOIN (SELECT order_id, COUNT(*) AS n, MIN(version) AS first, MAX(version) AS last FROM history GROUP BY order_id) h
				ON h.order_id = o.id
			WHERE h.n IS NULL OR h.first <> 1 OR h.last <> h.n OR h.last <> o.version
				OR o.status <> (SELECT status FROM history WHERE order_id = o.id AND version = o.version)`,
	},
	{
		name: "statuses follow the rules", says: "pending, then paid or payment_failed, then nothing",
		query: `SELECT order_id FROM history WHERE (version = 1) <> (status = 'pending') OR version > 2`,
	},
	{
		name: "orders are final", says: "or marked for the operator", atRest: true,
		query: `SELECT id FROM orders WHERE status = 'pending' AND attention IS NULL`,
	},
	// outbox and topics
	{
		name: "events are gapless", says: "an aggregate's events are numbered 1 to n",
		query: `SELECT e.aggregate FROM events e WHERE e.version IS NOT NULL GROUP BY e.service, e.topic, e.aggregate
			HAVING MAX(e.version) - MIN(e.version) + 1 <> COUNT(*) OR (MIN(e.version) <> 1 AND COALESCE(` + rowsRetainedSince + `e.service), 0) = 0)`,
	},
	{
		name: "events follow the orders", says: "an order's last event has its version",
		query: `SELECT o.id FROM orders o JOIN (SELECT aggregate, MAX(version) AS last FROM events WHERE service = 'order' GROUP BY aggregate) e
			ON e.aggregate = o.id WHERE e.last <> o.version`,
	},
	{
		name: "events are published", says: "none waits, but for those an operator knows of", atRest: true,
		query: `SELECT id FROM events WHERE published = 0 AND blocked = 0`,
	},
	{
		name: "published events are on their topic", says: "with the data they were written with", needs: needsTopics,
		query: `SELECT e.id FROM events e WHERE e.published = 1 AND e.sum IS NOT NULL AND e.created_at > ` + recordsRetainedSince + `e.topic)
			AND NOT EXISTS (SELECT 1 FROM records r WHERE r.event_id = e.id AND r.topic = e.topic AND r.key = e.aggregate
				AND r.type = e.type AND r.version = e.version AND r.sum = e.sum)`,
	},
	{
		name: "records come from the outbox", says: "nobody else writes our topics", needs: needsTopics,
		query: `SELECT r.topic || '/' || r.part || '/' || r.pos FROM records r WHERE r.before_snapshot = 1
			AND r.at >= COALESCE((SELECT since FROM retained WHERE retained.service || '-events' = r.topic), 0)
			AND NOT EXISTS (SELECT 1 FROM events e WHERE e.id = r.event_id)`,
	},
	{
		name: "first occurrences are in order", says: "of an aggregate's events, none overtakes another", needs: needsTopics,
		// A version that comes late is behind a later one, unless its first record was deleted by the retention and this is a
		// repetition. A version that is missing was deleted with it, or its row was pruned, or an operator skipped it.
		query: `WITH firsts AS (SELECT topic, key, version, MIN(pos) AS pos, MIN(at) AS at FROM records JOIN first_partitions USING (topic, key, part) WHERE version > 0 GROUP BY topic, key, version),
				steps AS (SELECT topic, key, version, LAG(version) OVER (PARTITION BY topic, key ORDER BY pos) AS before, MIN(at) OVER (PARTITION BY topic, key) AS since
					FROM firsts)
			SELECT DISTINCT s.key FROM steps s
			WHERE (version < before AND s.since > ` + recordsRetainedSince + `s.topic))
				OR (version > COALESCE(before, 0) + 1
					AND (before IS NOT NULL OR NOT EXISTS (SELECT 1 FROM partitions p WHERE p.topic = s.topic AND p.first > 0))
					AND s.since >= COALESCE((SELECT since FROM retained WHERE retained.service || '-events' = s.topic), 0)
					AND version - COALESCE(before, 0) - 1 <> (SELECT COUNT(*) FROM events e WHERE e.aggregate = s.key AND e.topic = s.topic
						AND e.blocked = 1 AND e.published = 0 AND e.version < s.version AND e.version > COALESCE(before, 0)))`,
	},
	{
		name: "a key has one partition", says: "or its order would be nobody's", needs: needsTopics,
		query: `SELECT DISTINCT c.key FROM keys_in_two_partitions c WHERE c.repartitioned = 0 AND c.since > ` + recordsRetainedSince + `c.topic)`,
	},
	{
		name: "repetitions are identical", says: "a record that comes again is the same", needs: needsTopics,
		query: `SELECT event_id FROM records WHERE event_id <> '' GROUP BY event_id HAVING COUNT(DISTINCT sum) > 1`,
	},
	// money
	{
		name: "one charge for an order", says: "the provider took money at most once", needs: needsSandbox,
		query: `SELECT order_id FROM charges WHERE status = 'succeeded' GROUP BY order_id HAVING COUNT(*) > 1`,
	},
	{
		name: "charges are for orders", says: "of their amount and currency", needs: needsSandbox,
		query: `SELECT c.id FROM charges c LEFT JOIN orders o ON o.id = c.order_id WHERE o.id IS NULL OR o.total <> c.amount OR o.currency <> c.currency`,
	},
	{
		name: "the money is right", says: "taken and kept: an order's total if it is paid, else nothing", needs: needsSandbox, atRest: true,
		query: `SELECT o.id FROM orders o LEFT JOIN (SELECT order_id, SUM(amount - refunded) AS captured FROM charges WHERE status = 'succeeded' GROUP BY order_id) c
			ON c.order_id = o.id WHERE COALESCE(c.captured, 0) <> CASE WHEN o.status = 'paid' THEN o.total ELSE 0 END`,
	},
	{
		name: "payments are for orders", says: "one for each",
		query: `SELECT p.id FROM payments p LEFT JOIN orders o ON o.id = p.order_id WHERE o.id IS NULL
			UNION SELECT MIN(id) FROM payments GROUP BY order_id HAVING COUNT(*) > 1`,
	},
	{
		name: "payments tell their end once", says: "by PaymentCompleted or PaymentFailed",
		query: `SELECT p.id FROM payments p LEFT JOIN (SELECT aggregate, COUNT(*) AS n, MIN(type) AS type FROM events WHERE service = 'payment' GROUP BY aggregate) e
				ON e.aggregate = p.id
			WHERE (p.status = 'completed' AND e.type <> 'PaymentCompleted') OR (p.status = 'failed' AND e.type <> 'PaymentFailed')
				OR (p.status IN ('completed', 'failed') AND e.n <> 1) OR (p.status NOT IN ('completed', 'failed') AND e.n IS NOT NULL)
				OR (p.status IN ('completed', 'failed') AND e.n IS NULL AND p.ended_at >= ` + rowsRetainedSince + `'payment'))`,
	},
	{
		name: "paid orders have their payment", says: "and it is completed",
		query: `SELECT o.id FROM orders o LEFT JOIN payments p ON p.order_id = o.id
			WHERE o.status = 'paid' AND o.paid_at < ` + settledBy + ` AND (p.id IS NULL OR p.status <> 'completed' OR p.id <> o.payment_id)`,
	},
	{
		name: "payments reach their order", says: "it is paid if the payment is completed, and failed if that failed", atRest: true,
		query: `SELECT p.id FROM payments p JOIN orders o ON o.id = p.order_id WHERE o.attention IS NULL
			AND ((p.status = 'completed') <> (o.status = 'paid') OR (p.status = 'failed') <> (o.status = 'payment_failed'))`,
	},
	{
		name: "payments are settled", says: "and so are refunds", atRest: true,
		query: `SELECT id FROM payments WHERE status NOT IN ('completed', 'failed') UNION SELECT id FROM refunds WHERE status <> 'completed'`,
	},
	// consumers
	{
		name: "records are handled", says: "by every group that subscribes to them: in its inbox, or parked", needs: needsTopics, atRest: true,
		query: `SELECT DISTINCT s.consumer || ' ' || r.event_id FROM records r JOIN subscriptions s ON s.topic = r.topic AND s.type = r.type
			WHERE r.at > ` + remembered + `
				AND NOT EXISTS (SELECT 1 FROM inbox i WHERE i.event_id = r.event_id AND i.consumer = s.consumer)
				AND NOT EXISTS (SELECT 1 FROM parked p WHERE p.event_id = r.event_id AND p.consumer = s.consumer)
				AND NOT (r.event_id = '' AND EXISTS (SELECT 1 FROM parked p WHERE p.consumer = s.consumer AND p.topic = r.topic AND p.part = r.part AND p.pos = r.pos))`,
	},
	{
		name: "nothing is retried", says: "what failed was handled, dead-lettered or given up since", atRest: true,
		query: `SELECT p.event_id FROM parked p WHERE p.state = 'retrying' OR (p.state = 'waiting' AND NOT EXISTS
			(SELECT 1 FROM parked d WHERE d.state = 'dead' AND d.consumer = p.consumer AND d.topic = p.topic AND d.key = p.key))`,
	},
	{
		name: "dead records have their letter", says: "stored together with what makes them dead",
		query: `SELECT d.consumer || ' ' || d.event_id FROM dead d WHERE d.failed_at >= ` + rowsRetainedSince + `d.service)
			AND NOT EXISTS (SELECT 1 FROM dead_letters l WHERE l.position = d.position AND l.consumer = d.consumer AND l.failed_at = d.failed_at
				AND l.service = d.service AND l.topic = d.topic || '-dlq')`,
	},
	{
		name: "dead letters are on their topic", says: "with the key, the headers and the value they were written with", needs: needsDeadLetters,
		// several services write there, and their clocks differ
		query: `SELECT l.consumer || ' ' || l.position FROM dead_letters l WHERE l.published = 1 AND l.created_at > ` + recordsRetainedSince + `l.topic) + 60000000
			AND NOT EXISTS (SELECT 1 FROM dlq_records p WHERE p.topic = l.topic AND p.sum = l.sum)`,
	},
	// deliveries
	{
		name: "a message once", says: "one delivery for an order, a type and a channel",
		query: `SELECT order_id FROM deliveries GROUP BY order_id, type, channel HAVING COUNT(*) > 1`,
	},
	{
		name: "customers are told", says: "of the order and of what became of its payment, by mail and by SMS", atRest: true,
		// of a pending order that is marked, messages about the payment are not asked about
		query: `SELECT o.id FROM orders o LEFT JOIN (SELECT order_id, SUM(type = 'order_confirmation') AS ordered, SUM(type = 'payment_confirmation') AS paid,
				SUM(type = 'payment_failed') AS failed FROM deliveries GROUP BY order_id) d ON d.order_id = o.id
			WHERE COALESCE(d.ordered, 0) <> 2 OR (NOT (o.status = 'pending' AND o.attention IS NOT NULL) AND
				(COALESCE(d.paid, 0) <> CASE o.status WHEN 'paid' THEN 2 ELSE 0 END OR COALESCE(d.failed, 0) <> CASE o.status WHEN 'payment_failed' THEN 2 ELSE 0 END))`,
	},
	{
		name: "deliveries are ended", says: "sent, or given up", atRest: true,
		query: `SELECT id FROM deliveries WHERE status = 'pending'`,
	},
	{
		name: "sent messages were received", says: "by the sandbox, at least once", needs: needsSandbox,
		query: `SELECT d.id FROM deliveries d WHERE d.status = 'sent' AND d.sent_at < ` + settledBy + `
			AND d.channel IN (SELECT channel FROM channels) AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.delivery_id = d.id AND m.channel = d.channel)`,
	},
}

// figures are counts that are shown with the findings.
var figures = []struct{ name, query string }{
	{"orders", `SELECT COUNT(*) FROM orders`},
	{"orders paid", `SELECT COUNT(*) FROM orders WHERE status = 'paid'`},
	{"orders with payment_failed", `SELECT COUNT(*) FROM orders WHERE status = 'payment_failed'`},
	{"orders marked for the operator", `SELECT COUNT(*) FROM orders WHERE attention IS NOT NULL`},
	{"promised orders", `SELECT COUNT(*) FROM promised`},
	{"events", `SELECT COUNT(*) FROM events`},
	{"events blocked", `SELECT COUNT(*) FROM events WHERE blocked = 1 AND published = 0`},
	{"records", `SELECT COUNT(*) FROM records`},
	{"records that came again", `SELECT COUNT(*) - COUNT(DISTINCT event_id) FROM records WHERE event_id <> ''`},
	{"dead letters", `SELECT COUNT(*) FROM parked WHERE state = 'dead'`},
	{"deliveries", `SELECT COUNT(*) FROM deliveries`},
	{"deliveries failed", `SELECT COUNT(*) FROM deliveries WHERE status = 'failed'`},
	{"messages", `SELECT COUNT(*) FROM messages`},
	{"messages that came again", `SELECT COUNT(*) - COUNT(DISTINCT delivery_id) FROM messages`},
	{"charges", `SELECT COUNT(*) FROM charges`},
}
