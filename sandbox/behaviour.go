package sandbox

import (
	"math/rand/v2"
	"net/http"
	"strings"
	"time"
)

// The tags of an e-mail address that trouble its charges; doc.go says how.
const (
	tagDeclined          = "declined"
	tagInsufficientFunds = "insufficient_funds"
	tagError             = "error"
	tagLost              = "lost"
	tagTimeout           = "timeout"
	tagHang              = "hang"
	tagLate              = "late"
	tagSlow              = "slow"
)

const (
	codeDeclined     = "card_declined"
	codeInsufficient = "insufficient_funds"
	maxLatencyMS     = 10 * 60 * 1000
	suffixAlways     = "-always"
)

// fault is what an address asks for; the zero fault is an ordinary customer.
type fault struct {
	tag    string
	always bool // on every request, not once for an order
}

// faultOf finds the first tag known to the provider among those of the address.
func faultOf(address string) fault {
	for _, tag := range plusTags(address) {
		name, always := strings.CutSuffix(tag, suffixAlways)
		switch name {
		case tagDeclined, tagInsufficientFunds, tagError, tagLost, tagTimeout, tagHang, tagLate, tagSlow:
			return fault{tag: name, always: always}
		}
	}
	return fault{}
}

// plusTags returns what stands between the pluses of the local part, in lower case.
func plusTags(address string) []string {
	at := strings.LastIndexByte(address, '@')
	if at < 0 {
		return nil
	}
	return strings.Split(strings.ToLower(address[:at]), "+")[1:]
}

// use is the fact that the fault has worked for the order, if it works once.
func (f fault) use(order string) *usedTag {
	if f.tag == "" || f.always {
		return nil
	}
	return &usedTag{OrderReference: order, Tag: f.tag}
}

// take returns the fault, or none when it has already worked for the order.
func (p *payments) take(order string, f fault) fault {
	use := f.use(order)
	if use == nil {
		return f
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used[*use] {
		return fault{}
	}
	p.used[*use] = true // at once, so that two keys of one order cannot both have it
	return f
}

// declineCode says why the charge is declined; "" is a success.
func (p *payments) declineCode(f fault) string {
	switch {
	case f.tag == tagDeclined:
		return codeDeclined
	case f.tag == tagInsufficientFunds:
		return codeInsufficient
	case f.tag == "" && rand.Float64() < p.currentBehaviour().DeclineRate: //nolint:gosec // a simulated chance
		return codeDeclined
	}
	return ""
}

// behaviour is how the provider treats all traffic; the zero value is kind.
type behaviour struct {
	LatencyMS   int64   `json:"latency_ms"`   // before anything is done
	DeclineRate float64 `json:"decline_rate"` // 0 to 1, of new charges
	ErrorRate   float64 `json:"error_rate"`   // 0 to 1, answered 500 with nothing done
	LostRate    float64 `json:"lost_rate"`    // 0 to 1, done and the connection cut
}

func (b behaviour) check() error {
	if b.LatencyMS < 0 || b.LatencyMS > maxLatencyMS {
		return invalid("invalid_latency_ms", "latency_ms must be between 0 and 600000")
	}
	for _, rate := range []struct {
		name  string
		value float64
	}{{"decline_rate", b.DeclineRate}, {"error_rate", b.ErrorRate}, {"lost_rate", b.LostRate}} {
		if rate.value < 0 || rate.value > 1 {
			return invalid("invalid_"+rate.name, rate.name+" must be between 0 and 1")
		}
	}
	return nil
}

func (p *payments) currentBehaviour() behaviour {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.behaviour
}

// disturb does to a request what the behaviour says for all traffic.
func (x *exchange) disturb() error {
	b := x.p.currentBehaviour()
	if err := x.pause(time.Duration(b.LatencyMS) * time.Millisecond); err != nil {
		return err
	}
	x.lost = rand.Float64() < b.LostRate //nolint:gosec // a simulated chance
	if rand.Float64() < b.ErrorRate {    //nolint:gosec // a simulated chance
		return &apiError{status: http.StatusInternalServerError, Code: "internal", Message: "nothing was done"}
	}
	return nil
}

func (p *payments) handleGetBehaviour(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, p.log, http.StatusOK, p.currentBehaviour())
}

// handlePutBehaviour replaces the whole behaviour: what is not given is zero.
func (p *payments) handlePutBehaviour(w http.ResponseWriter, r *http.Request) {
	var b behaviour
	err := decode(w, r, &b)
	if err == nil {
		err = b.check()
	}
	if err == nil {
		err = p.append(record{Behaviour: &b})
	}
	if err != nil {
		writeError(w, p.log, err)
		return
	}
	writeJSON(w, p.log, http.StatusOK, b)
}
