// Package order takes orders, and records what became of their payment.
//
// It owns the tables orders, order_items, order_history and idempotency_keys,
// and serves POST and GET under /api/v1/orders, GET /api/v1/menu and the
// contracts: /openapi.json, /docs/ and /asyncapi.yaml.
//
// It emits OrderCreated, OrderPaid and OrderPaymentFailed, and consumes
// PaymentCompleted and PaymentFailed in the group order-service.
//
// It promises:
//
//   - An order that was answered with 201 is committed, with its first history
//     entry and its OrderCreated; an order that was refused has left no trace.
//   - Prices come from the menu at the moment of acceptance, never from outside.
//   - One Idempotency-Key makes one order within 24 hours at least, however many
//     requests carry it and whichever replica they reach.
//   - An order leaves pending once. Payment events that arrive later change nothing.
//   - An order that needs a human is marked: at once when a payment does not
//     match it, after its deadline when no payment event has arrived.
//
// Replicas are equal and share nothing but the database.
package order
