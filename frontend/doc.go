// Package frontend is what a customer sees: the shop, the checkout and the
// tracker, in Russian and in English, rendered on the server from embedded
// templates, with scripts, styles and pictures of our own and none of other hosts.
//
// Routes:
//
//	GET  /                            the shop
//	POST /orders                      the shop's form; 303 to the tracker
//	GET  /orders/{id}                 the tracker
//	GET  /api/v1/orders/{id}/events   an order's steps as server-sent events
//	GET  /static/…                    styles, scripts, pictures
//	     /api/…, /openapi.json, /docs/, /asyncapi.yaml   passed to the order API
//
// ?lang=ru or ?lang=en chooses the language of any page and is remembered in the
// cookie lang; without either, Accept-Language decides.
//
// The fields of POST /orders (application/x-www-form-urlencoded):
//
//	customer_name, customer_email, customer_phone, delivery_address, comment
//	locale             the language of the page, and so of the order: ru or en
//	idempotency_key    new in every form that is rendered; a second click sends it again
//	quantity_<id>      how many of the pizza with this id; empty or 0 is none
//	size_<id>          small, medium or large
//
// quantity_<id> and size_<id> may repeat, so that one pizza can be ordered in two
// sizes: the first quantity belongs to the first size, and so on.
//
// What it promises: ordering works without JavaScript; a form sent twice is one
// order; a refused form is shown again as it was typed; a tracker shows every step
// once and in order, also after its connection broke, and shows a change within
// seconds also while Kafka is away.
//
// It owns no table and emits no event. Each replica reads order-events and
// payment-events from their end, without a group. A record is a hint that an order
// changed; the order itself is read from the order API.
package frontend
