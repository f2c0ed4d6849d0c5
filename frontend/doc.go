// Package frontend is what a customer sees: the shop, the checkout and the
// tracker, in Russian and in English, drawn on the server from embedded
// templates, with own scripts, styles and pictures and nothing from other hosts.
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
//	idempotency_key    made anew for every form that is drawn; a second click sends it again
//	quantity_<id>      how many of the pizza with this id; empty or 0 is none
//	size_<id>          small, medium or large
//
// quantity_<id> and size_<id> may repeat: the first of one goes with the first of
// the other. That is how one pizza is ordered in two sizes.
//
// What it promises: ordering works without JavaScript; a form sent twice is one
// order; what was typed is kept when it is refused; a tracker shows every step
// once, in order, also after its connection broke, and sees a change within
// seconds even while Kafka is away.
//
// It owns no table and emits no event. Each replica reads order-events and
// payment-events from their end, without a group, as a hint that an order changed;
// what changed is read from the order API.
package frontend
