package pizzaflow

import (
	"slices"
	"testing"
)

// What real customers received is not looked for in the sandbox.
func TestSandboxChannels(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want []string
	}{
		{Config{SandboxAddr: "127.0.0.1:8082"}, []string{"email", "sms"}},
		{Config{PaymentProviderURL: "sandbox://box:8082", SMTPURL: "smtp://box:2525", SMSURL: "http://box:8082/sms/messages"}, []string{"email", "sms"}},
		{Config{PaymentProviderURL: "sandbox://box:8082", SMTPURL: "smtp://user:secret@mail.example:587", SMSURL: "http://box:8082/sms/messages"}, []string{"sms"}},
		{Config{PaymentProviderURL: "sandbox://box:8082", SMTPURL: "smtp://mail.example:587", SMSURL: "https://sms.example/send"}, nil},
		{Config{PaymentProviderURL: "https://bank.example"}, nil},
	} {
		if got := c.cfg.sandboxChannels(c.cfg.sandboxURL()); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %q, want %q", c.cfg, got, c.want)
		}
	}
}
