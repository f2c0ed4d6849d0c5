package sandbox

import (
	"math/rand/v2"
	"net/http"
	"strings"
	"time"
)

// The tags of an e-mail address that inject faults into its charges; see the package
// comment.
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

// fault is the fault that an address asks for; the zero fault is none.
type fault struct {
	tag    string
	always bool // on every request, not once for an order
}

// parseFault returns the fault of the first known tag of the address.
func parseFault(address string) fault {
	for _, tag := range plusTags(address) {
		name, always := strings.CutSuffix(tag, suffixAlways)
		switch name {
		case tagDeclined, tagInsufficientFunds, tagError, tagLost, tagTimeout, tagHang, tagLate, tagSlow:
			return fault{tag: name, always: always}
		}
	}
	return fault{}
}

// plusTags returns the tags of an address, which follow the pluses of its local part,
// in lower case.
func plusTags(address string) []string {
	at := strings.LastIndexByte(address, '@')
	if at < 0 {
		return nil
	}
	return strings.Split(strings.ToLower(address[:at]), "+")[1:]
}

// tagFor returns the fact that the fault was used by the order, nil if the fault may be
// used again.
func (f fault) tagFor(order string) *usedTag {
	if f.tag == "" || f.always {
		return nil
	}
	return &usedTag{OrderReference: order, Tag: f.tag}
}

// useTag marks the fault as used by the order and returns it. If the order has used it
// before, it returns no fault.
func (p *payments) useTag(order string, f fault) fault {
	use := f.tagFor(order)
	if use == nil {
		return f
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.usedTags[*use] {
		return fault{}
	}
	p.usedTags[*use] = true // before it is on disk, so that two keys of one order cannot both use it
	return f
}

// declineCode returns why the charge is declined, "" if it succeeds.
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

// behaviour has the faults of all traffic; the zero value has none.
type behaviour struct {
	LatencyMS   int64   `json:"latency_ms"`   // before each request is handled
	DeclineRate float64 `json:"decline_rate"` // 0 to 1, of new charges
	ErrorRate   float64 `json:"error_rate"`   // 0 to 1, of requests answered 500 and not handled
	LostRate    float64 `json:"lost_rate"`    // 0 to 1, of requests handled and cut before the answer
}

func (b behaviour) validate() error {
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

// applyBehaviour delays the request, fails it or marks its answer as lost, as the
// behaviour says.
func (x *exchange) applyBehaviour() error {
	b := x.p.currentBehaviour()
	if err := x.delay(time.Duration(b.LatencyMS) * time.Millisecond); err != nil {
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

// handlePutBehaviour replaces the whole behaviour: absent fields are zero.
func (p *payments) handlePutBehaviour(w http.ResponseWriter, r *http.Request) {
	var b behaviour
	err := decode(w, r, &b)
	if err == nil {
		err = b.validate()
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
