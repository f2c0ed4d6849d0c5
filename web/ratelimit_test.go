package web

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reached := 0
		h := Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached++ }), HandlerConfig{RateLimit: 6})
		from := func(peer string) *httptest.ResponseRecorder {
			r := httptest.NewRequest("GET", "/api/v1/menu", nil)
			r.RemoteAddr = peer
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			return rec
		}
		for i := range 6 {
			if rec := from(fmt.Sprintf("203.0.113.7:%d", 1000+i)); rec.Code != 200 {
				t.Fatalf("request %d: %d", i, rec.Code)
			}
		}
		rec := from("203.0.113.7:1")
		if rec.Code != 429 || rec.Header().Get("Retry-After") != "10" || reached != 6 ||
			rec.Header().Get("Content-Type") != "application/problem+json; charset=utf-8" {
			t.Fatalf("one too many: %d %v, %d got through", rec.Code, rec.Header(), reached)
		}
		if rec := from("203.0.113.8:1"); rec.Code != 200 {
			t.Errorf("another peer: %d", rec.Code)
		}
		time.Sleep(9 * time.Second)
		if rec := from("203.0.113.7:1"); rec.Code != 429 || rec.Header().Get("Retry-After") != "1" {
			t.Errorf("before Retry-After: %d %v", rec.Code, rec.Header())
		}
		time.Sleep(time.Second)
		if rec := from("203.0.113.7:1"); rec.Code != 200 {
			t.Errorf("after Retry-After: %d", rec.Code)
		}
		if rec := from("203.0.113.7:1"); rec.Code != 429 {
			t.Errorf("one more: %d", rec.Code)
		}
		time.Sleep(time.Minute)
		reached = 0
		for range 20 {
			from("203.0.113.7:1")
		}
		if reached != 6 {
			t.Errorf("after a quiet minute %d got through", reached)
		}
		for range 100 {
			if rec := from("127.0.0.1:1"); rec.Code != 200 {
				t.Fatalf("this machine: %d", rec.Code)
			}
			if rec := from("[::1]:1"); rec.Code != 200 {
				t.Fatalf("this machine: %d", rec.Code)
			}
		}
	})
}

func TestRateLimitOff(t *testing.T) {
	if newLimiter(0) != nil || newLimiter(-1) != nil {
		t.Error("a limiter without a limit")
	}
}

func TestLimiterRemembersBusyPeersInBoundedMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(1)
		busy := netip.MustParseAddr("203.0.113.7")
		if l.reserve(busy) != 0 {
			t.Fatal("refused at once")
		}
		for i := range 40_000 {
			l.reserve(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
			if i%4000 == 0 && l.reserve(busy) == 0 {
				t.Fatalf("forgotten after %d others", i)
			}
			if known := len(l.young) + len(l.old); known > maxPeers {
				t.Fatalf("remembers %d peers", known)
			}
		}
	})
}

func TestPeers(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for _, c := range []struct {
		remote    string
		forwarded []string
		trusted   []netip.Prefix
		peer      string
		limited   bool
	}{
		{"203.0.113.7:1", nil, nil, "203.0.113.7", true},
		{"127.0.0.1:1", nil, nil, "127.0.0.1", false},
		{"[::1]:1", nil, nil, "::1", false},
		{"[::ffff:203.0.113.7]:1", nil, nil, "203.0.113.7", true},
		{"[fe80::1%eth0]:1", nil, nil, "fe80::1", true},
		{"pipe", nil, nil, "invalid IP", true},
		// The header of a peer that is not trusted is ignored.
		{"203.0.113.7:1", []string{"127.0.0.1"}, trusted, "203.0.113.7", true},
		{"127.0.0.1:1", []string{"198.51.100.1"}, nil, "127.0.0.1", false},
		// Of a trusted proxy's header, the addresses that others wrote before it are ignored.
		{"10.1.1.1:1", []string{"203.0.113.7"}, trusted, "203.0.113.7", true},
		{"127.0.0.1:1", []string{"203.0.113.7"}, trusted, "203.0.113.7", true},
		{"[fd00::1]:1", []string{"2001:db8::1"}, trusted, "2001:db8::1", true},
		{"10.1.1.1:1", []string{"127.0.0.1, 198.51.100.1, 203.0.113.7"}, trusted, "203.0.113.7", true},
		{"10.1.1.1:1", []string{"198.51.100.1", "203.0.113.7 , 10.2.2.2"}, trusted, "203.0.113.7", true},
		{"10.1.1.1:1", []string{"203.0.113.7:5678"}, trusted, "203.0.113.7", true},
		{"10.1.1.1:1", []string{"[2001:db8::1]:5678"}, trusted, "2001:db8::1", true},
		{"10.1.1.1:1", []string{"127.0.0.1"}, trusted, "127.0.0.1", true},
		{"10.1.1.1:1", []string{"203.0.113.7, unknown"}, trusted, "10.1.1.1", true},
		{"127.0.0.1:1", []string{"unknown"}, trusted, "127.0.0.1", true},
		{"10.1.1.1:1", nil, trusted, "10.1.1.1", true},
		{"127.0.0.1:1", nil, trusted, "127.0.0.1", false},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = c.remote
		r.Header["X-Forwarded-For"] = c.forwarded
		peer, limited := peerOf(r, c.trusted)
		if peer.String() != c.peer || limited != c.limited {
			t.Errorf("%s %q: %s %v, want %s %v", c.remote, c.forwarded, peer, limited, c.peer, c.limited)
		}
	}
}

func TestPeerKey(t *testing.T) {
	key := func(s string) netip.Prefix { return peerKey(netip.MustParseAddr(s)) }
	if key("2001:db8::1") != key("2001:db8::ffff:1") || key("2001:db8::1") == key("2001:db8:0:1::1") {
		t.Error("an IPv6 peer is its /64")
	}
	if key("203.0.113.7") == key("203.0.113.8") {
		t.Error("an IPv4 peer is its address")
	}
}
