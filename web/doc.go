// Package web is the HTTP edge that every part of Pizzaflow shares: strict JSON
// in, JSON and RFC 9457 problems out, one middleware, one server loop with
// limits, and the admin surface (metrics, health, profiles).
//
// It promises:
//
//   - [Decode] takes a body as it is meant or refuses it, with a pointer to each
//     field at fault. Nothing is guessed, dropped, folded or replaced.
//   - No answer carries a submitted value, SQL, a file name or a stack, and the
//     access log has no query string, no body and no peer.
//   - Every request ends: headers, bodies and answers have deadlines and size
//     limits, and [Serve] stops within ten seconds of being asked to.
//
// It knows nothing of pizzas and imports nothing of ours.
package web
