package web

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// maxPeers bounds the peers that a limiter remembers.
const maxPeers = 10_000

// limiter allows each peer a number of requests a minute: all at once, if the
// peer was quiet before, and then evenly. For each peer it keeps one time, the one
// at which the peer's debt is paid.
//
// Peers are kept in two generations. When the young one is full it becomes the
// old one and the old one is forgotten; a peer that comes again moves to the
// young. So memory is bounded, no request waits for a sweep, and a busy peer is
// not forgotten.
type limiter struct {
	interval time.Duration // one request costs this much
	burst    time.Duration // and this much debt is allowed

	mu         sync.Mutex
	young, old map[netip.Prefix]time.Time
}

// newLimiter returns nil when there is no limit.
func newLimiter(perMinute int) *limiter {
	if perMinute <= 0 {
		return nil
	}
	interval := time.Minute / time.Duration(perMinute)
	return &limiter{
		interval: interval, burst: interval * time.Duration(perMinute),
		young: map[netip.Prefix]time.Time{},
	}
}

// take counts one request and returns 0, or returns how long the peer has to wait
// for its next one.
func (l *limiter) take(peer netip.Addr) time.Duration {
	key := peerKey(peer)
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	paid, ok := l.young[key]
	if !ok {
		paid = l.old[key]
	}
	if paid.Before(now) {
		paid = now
	}
	wait := max(0, paid.Add(l.interval).Sub(now)-l.burst)
	if wait == 0 {
		paid = paid.Add(l.interval)
	}
	if !ok && len(l.young) >= maxPeers/2 {
		l.old, l.young = l.young, make(map[netip.Prefix]time.Time)
	}
	l.young[key] = paid
	return wait
}

// peerKey is what is counted: one IPv4 address, or the /64 network of an IPv6
// one, which is what a single customer is given.
func peerKey(peer netip.Addr) netip.Prefix {
	bits := 32
	if peer.Is6() {
		bits = 64
	}
	key, _ := peer.Prefix(bits) // of an invalid address, the zero prefix
	return key
}

// peerOf returns who is asking, and whether the rate limit is for them. A trusted
// proxy is taken at its word: the last address in X-Forwarded-For that is not a
// trusted proxy itself. Whatever others write there is ignored. This machine is
// not limited, unless as a trusted proxy it says that it speaks for another.
func peerOf(r *http.Request, trusted []netip.Prefix) (peer netip.Addr, limited bool) {
	peer, ok := parseAddr(r.RemoteAddr)
	if !ok {
		return netip.Addr{}, true // a connection without an IP address: all of them count as one
	}
	isTrusted := func(a netip.Addr) bool {
		return slices.ContainsFunc(trusted, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	hops := r.Header.Values("X-Forwarded-For")
	if len(hops) == 0 || !isTrusted(peer) {
		return peer, !peer.IsLoopback()
	}
	for _, hop := range slices.Backward(strings.Split(strings.Join(hops, ","), ",")) {
		next, ok := parseAddr(strings.TrimSpace(hop))
		if !ok {
			break // count it as the proxy that let this through
		}
		if peer = next; !isTrusted(peer) {
			break
		}
	}
	return peer, true
}

// parseAddr reads an address with or without a port; an IPv4 address in IPv6
// clothes and a zone do not make another peer of it.
func parseAddr(s string) (netip.Addr, bool) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap().WithZone(""), true
	}
	a, err := netip.ParseAddr(s)
	return a.Unmap().WithZone(""), err == nil
}
