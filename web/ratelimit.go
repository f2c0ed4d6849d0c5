package web

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// maxPeers is the limit of peers in a limiter.
const maxPeers = 10_000

// limiter is a leaky bucket for each peer (the generic cell rate algorithm): a peer
// may send all its requests of a minute at once, and then one each interval. For each
// peer it keeps the time at which the bucket is empty.
//
// Peers are kept in two generations. When the young one is full it becomes the old
// one, and the old one is dropped; a peer that sends another request moves to the
// young one. So memory is bounded, no request waits for a sweep, and an active peer
// keeps its bucket.
type limiter struct {
	interval time.Duration // the cost of one request
	burst    time.Duration // the size of a bucket

	mu         sync.Mutex
	young, old map[netip.Prefix]time.Time
}

// newLimiter returns nil for no limit.
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

// reserve counts one request and returns 0, or returns how long the peer must wait
// before its next request.
func (l *limiter) reserve(peer netip.Addr) time.Duration {
	key := peerKey(peer)
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	emptyAt, ok := l.young[key]
	if !ok {
		emptyAt = l.old[key]
	}
	if emptyAt.Before(now) {
		emptyAt = now
	}
	wait := max(0, emptyAt.Add(l.interval).Sub(now)-l.burst)
	if wait == 0 {
		emptyAt = emptyAt.Add(l.interval)
	}
	if !ok && len(l.young) >= maxPeers/2 {
		l.old, l.young = l.young, make(map[netip.Prefix]time.Time)
	}
	l.young[key] = emptyAt
	return wait
}

// peerKey returns an IPv4 address, or the /64 network of an IPv6 address: providers
// give one customer a whole /64.
func peerKey(peer netip.Addr) netip.Prefix {
	bits := 32
	if peer.Is6() {
		bits = 64
	}
	key, _ := peer.Prefix(bits) // of an invalid address, the zero prefix
	return key
}

// peerOf returns the peer of a request and whether the rate limit applies to it. If
// the connection is from a trusted proxy, the peer is the last address in
// X-Forwarded-For that is no trusted proxy; else the header is ignored. Requests from
// this machine are not limited, unless it is a trusted proxy that forwards for others.
func peerOf(r *http.Request, trusted []netip.Prefix) (peer netip.Addr, limited bool) {
	peer, ok := parseAddr(r.RemoteAddr)
	if !ok {
		return netip.Addr{}, true // no IP address: all such connections share a bucket
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
			break // the proxy that passed it on is counted
		}
		if peer = next; !isTrusted(peer) {
			break
		}
	}
	return peer, true
}

// parseAddr reads an address with or without a port. It unmaps IPv4-mapped IPv6
// addresses and drops the zone, so that a peer has one address.
func parseAddr(s string) (netip.Addr, bool) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap().WithZone(""), true
	}
	a, err := netip.ParseAddr(s)
	return a.Unmap().WithZone(""), err == nil
}
