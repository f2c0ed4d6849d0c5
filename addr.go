package pizzaflow

import (
	"net"
	"net/netip"
	"net/url"
)

// needsSandbox reports whether this process runs a sandbox: as its only service always, and beside others if a URL, of this
// or of another process, may point at it.
func (c Config) needsSandbox() bool {
	return c.runs("sandbox") && (len(c.services()) == 1 || c.PaymentProviderURL == "" || c.SMTPURL == "" || c.SMSURL == "" ||
		pointsAt(c.PaymentProviderURL, c.SandboxAddr) || pointsAt(c.SMSURL, c.SandboxAddr) || pointsAt(c.SMTPURL, c.SandboxSMTPAddr))
}

// pointsAt reports whether a URL may lead to the address, whose host can be spelt in many ways.
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

// unspecified reports whether a host stands for all addresses of the machine.
func unspecified(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "" || err == nil && a.IsUnspecified()
}

// dialable is an address to listen at, as a browser on this machine dials it.
func dialable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err == nil && unspecified(host) {
		return net.JoinHostPort("localhost", port)
	}
	return addr
}
