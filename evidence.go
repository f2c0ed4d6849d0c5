package pizzaflow

import (
	"net/url"
	"slices"

	"pizzaflow/verify"
)

// Evidence says where verify finds evidence besides the databases: on the topics and in the sandbox, unless skip names them.
func (c Config) Evidence(skip []string) (evidence verify.Config, err error) {
	if !slices.Contains(skip, "topics") {
		if evidence.Kafka, err = c.kafka([]string{dialable(c.KafkaListen)}).Options(); err != nil {
			return verify.Config{}, KafkaError(err)
		}
	}
	if !slices.Contains(skip, "sandbox") {
		evidence.Sandbox = c.sandboxURL()
	}
	evidence.Channels = c.sandboxChannels(evidence.Sandbox)
	return evidence, nil
}

// sandboxChannels are the channels whose messages go to the sandbox: to the host that takes the payments.
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

// sandboxURL is where the sandbox serves its charges and messages; "" when the payments go to another provider.
func (c Config) sandboxURL() string {
	if c.PaymentProviderURL == "" {
		return "http://" + c.SandboxAddr
	}
	if u, err := url.Parse(c.PaymentProviderURL); err == nil && u.Scheme == "sandbox" {
		return "http://" + u.Host
	}
	return ""
}
