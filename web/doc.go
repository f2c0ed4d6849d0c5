// Package web is the HTTP server side that every part of Pizzaflow shares: strict
// JSON in, JSON and RFC 9457 problems out, one middleware, one server loop with
// limits, and the admin routes (metrics, health, profiles).
//
// It promises:
//
//   - [Decode] accepts a body only if it means exactly one value of the type, and else
//     refuses it with a pointer to each field at fault. It guesses, drops, folds
//     and replaces nothing.
//   - No answer carries a submitted value, SQL, a file name or a stack, and the
//     access log has no query string, no body and no peer.
//   - Every request ends: headers, bodies and answers have deadlines and size
//     limits, and [Serve] stops within ten seconds of being asked to.
//
// It knows nothing of pizzas.
package web
