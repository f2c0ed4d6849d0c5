package kafka_test

import (
	"strings"
	"testing"

	"pizzaflow/kafka"
)

func TestValidateNamesWhatIsWrong(t *testing.T) {
	good := []string{"broker-1:9092", "[::1]:9092"}
	for name, test := range map[string]struct {
		config kafka.Config
		want   string // part of the message; empty means valid
	}{
		"plain":                   {kafka.Config{Brokers: good}, ""},
		"no brokers":              {kafka.Config{}, "brokers: none given"},
		"no port":                 {kafka.Config{Brokers: []string{"kafka"}}, `"kafka" is not host:port`},
		"no host":                 {kafka.Config{Brokers: []string{":9092"}}, `":9092" has no host`},
		"port 0":                  {kafka.Config{Brokers: []string{"kafka:0"}}, "from 1 to 65535"},
		"port too large":          {kafka.Config{Brokers: []string{"kafka:65536"}}, "from 1 to 65535"},
		"second broker":           {kafka.Config{Brokers: []string{"kafka:9092", "http://kafka"}}, "http://kafka"},
		"certificate without key": {kafka.Config{Brokers: good, TLS: kafka.TLS{Enabled: true, CertFile: "c.pem"}}, "TLS: the certificate file and the key file"},
		"files but no TLS":        {kafka.Config{Brokers: good, TLS: kafka.TLS{CAFile: "ca.pem"}}, "TLS is not enabled"},
		"unknown mechanism":       {kafka.Config{Brokers: good, SASL: kafka.SASL{Mechanism: "GSSAPI", User: "u", Password: "p"}}, `unknown mechanism "GSSAPI"`},
		"no password":             {kafka.Config{Brokers: good, SASL: kafka.SASL{Mechanism: "PLAIN", User: "u"}}, "SASL: PLAIN needs"},
		"user but no mechanism":   {kafka.Config{Brokers: good, SASL: kafka.SASL{User: "u", Password: "p"}}, "but no mechanism"},
		"SCRAM over TLS":          {kafka.Config{Brokers: good, TLS: kafka.TLS{Enabled: true}, SASL: kafka.SASL{Mechanism: "SCRAM-SHA-512", User: "u", Password: "p"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.config.Validate()
			if test.want == "" {
				if err != nil {
					t.Fatalf("Validate: %v, want none", err)
				}
				if _, err := test.config.Options(); err != nil {
					t.Fatalf("Options: %v, want none", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("Validate: %v, want something with %q", err, test.want)
			}
			if _, err := test.config.Options(); err == nil {
				t.Fatal("Options takes what Validate refuses")
			}
			if strings.Contains(err.Error(), `"p"`) {
				t.Fatalf("the message shows the password: %v", err)
			}
		})
	}
}

func TestValidateReportsEverythingAtOnce(t *testing.T) {
	err := kafka.Config{SASL: kafka.SASL{Mechanism: "X"}, TLS: kafka.TLS{CAFile: "ca.pem"}}.Validate()
	for _, want := range []string{"brokers", "TLS", "SASL"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Validate: %v, want a word about %s", err, want)
		}
	}
}

func TestMissingTLSFileIsNamed(t *testing.T) {
	c := kafka.Config{Brokers: []string{"kafka:9092"}, TLS: kafka.TLS{Enabled: true, CAFile: t.TempDir() + "/ca.pem"}}
	if _, err := c.Options(); err == nil || !strings.Contains(err.Error(), "ca.pem") {
		t.Fatalf("Options: %v, want the name of the file", err)
	}
}
