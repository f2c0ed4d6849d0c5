package pizzaflow

import (
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// hostname is a host as it is looked up: an address as it is, a name in lower case and as A-label.
func hostname(host string) (string, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return a.String(), nil
	}
	return hostNames.ToASCII(host)
}

// hostNames are the names that are looked up. Names of containers may have an underscore, which those of the internet have not.
var hostNames = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(false), idna.VerifyDNSLength(true))

// isHost reports whether a host can be looked up.
func isHost(host string) bool {
	name, err := hostname(host)
	return err == nil && name != "" && !strings.ContainsAny(name, " /?#@%\"<>\\^`{|}=,;")
}

// isPort reports whether a port is left out or can be connected to.
func isPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return port == "" || err == nil && n > 0
}

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
