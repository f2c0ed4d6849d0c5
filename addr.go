package pizzaflow

import (
	"net"
	"net/netip"
	"net/url"
)

// needsSandbox reports whether this process runs a sandbox: alone always, and
// beside other services if any of them, or of another process, may point at it.
func (c Config) needsSandbox() bool {
	return c.runs("sandbox") && (len(c.services()) == 1 || c.PaymentProviderURL == "" || c.SMTPURL == "" || c.SMSURL == "" ||
		pointsAt(c.PaymentProviderURL, c.SandboxAddr) || pointsAt(c.SMSURL, c.SandboxAddr) || pointsAt(c.SMTPURL, c.SandboxSMTPAddr))
}

// pointsAt reports whether a URL may lead to our own address, whose host can be
// spelt in many ways.
func pointsAt(rawURL, addr string) bool {
	u, err := url.Parse(rawURL)
	if err != nil {
		return false
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil || u.Port() != port {
		return false
	}
	local := func(h string) bool {
		a, err := netip.ParseAddr(h)
		return h == "" || h == "localhost" || err == nil && (a.IsLoopback() || a.IsUnspecified())
	}
	return u.Hostname() == host || local(host) && local(u.Hostname()) || host == "" || unspecified(host)
}

func unspecified(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "" || err == nil && a.IsUnspecified()
}

// visible is an address as a browser on this machine finds it.
func visible(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err == nil && unspecified(host) {
		return net.JoinHostPort("localhost", port)
	}
	return addr
}
