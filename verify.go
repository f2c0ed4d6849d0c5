package pizzaflow

import (
	"context"
	"errors"
	"io"
	"net/url"
	"slices"
	"time"

	"pizzaflow/sqldb"
	"pizzaflow/verify"
)

type (
	// VerifyReport is what the evidence says of the promise.
	VerifyReport = verify.Report
	// VerifyFinding is what became of one invariant.
	VerifyFinding = verify.Finding
	// VerifyFigure is something that was counted.
	VerifyFigure = verify.Figure
)

// A VerifyRequest says what is to be verified.
type VerifyRequest struct {
	Log      io.Reader     // what pizza load was promised; nil without
	Wait     time.Duration // how long the system may take to come to rest; 0: it need not
	Skip     []string      // topics, sandbox: not looked at
	Progress func(string)  // told what is being done; may be nil
}

// Verify checks the invariants on live data: in the databases of all three
// services, and as far as they can be reached on the topics and in the sandbox.
// The services may run or not.
func Verify(ctx context.Context, cfg Config, want VerifyRequest) (_ VerifyReport, err error) {
	v := verify.Config{Databases: map[string]*sqldb.DB{}, Sandbox: cfg.sandboxURL(), Log: want.Log, Progress: want.Progress}
	for _, s := range domain {
		op, e := openOperator(ctx, cfg, s.name)
		if e != nil {
			return VerifyReport{}, e
		}
		defer func() { err = errors.Join(err, op.Close()) }()
		v.Databases[s.name] = op.db
	}
	if !slices.Contains(want.Skip, "topics") {
		if v.Kafka, err = cfg.kafka([]string{visible(cfg.KafkaListen)}).Options(); err != nil {
			return VerifyReport{}, kafkaFault(err)
		}
	}
	if slices.Contains(want.Skip, "sandbox") {
		v.Sandbox = ""
	}
	v.Channels = cfg.sandboxChannels(v.Sandbox)
	return verify.Check(ctx, v, want.Wait)
}

// sandboxChannels are those by which the messages go to the sandbox: to the
// machine on which it takes the payments.
func (c Config) sandboxChannels(sandbox string) (channels []string) {
	there, err := url.Parse(sandbox)
	if err != nil || sandbox == "" {
		return nil
	}
	for _, to := range []struct{ channel, url string }{{"email", c.SMTPURL}, {"sms", c.SMSURL}} {
		if u, err := url.Parse(to.url); to.url == "" || err == nil && u.Hostname() == there.Hostname() {
			channels = append(channels, to.channel)
		}
	}
	return channels
}

// sandboxURL is where the sandbox serves what it has charged and received; ""
// when the payments go elsewhere.
func (c Config) sandboxURL() string {
	if c.PaymentProviderURL == "" {
		return "http://" + c.SandboxAddr
	}
	if u, err := url.Parse(c.PaymentProviderURL); err == nil && u.Scheme == "sandbox" {
		return "http://" + u.Host
	}
	return ""
}
