package kafka_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"pizzaflow/kafka"
	"pizzaflow/kafka/kafkatest"
)

// certificate makes a certificate for 127.0.0.1 that is its own authority, and returns its two files.
func certificate(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", cert), write("key.pem", "PRIVATE KEY", private)
}

// encrypted starts a broker that speaks TLS to those with the client certificate, and asks for a password.
func encrypted(t *testing.T) kafka.Config {
	t.Helper()
	serverCert, serverKey := certificate(t)
	clientCert, clientKey := certificate(t)
	pair, err := tls.LoadX509KeyPair(serverCert, serverKey)
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	raw, err := os.ReadFile(clientCert)
	if err != nil || !clients.AppendCertsFromPEM(raw) {
		t.Fatal("the client's certificate cannot be read", err)
	}
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.Superuser("PLAIN", "pizza", "secret"),
		kfake.TLS(&tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return kafka.Config{
		Brokers: c.ListenAddrs(),
		TLS:     kafka.TLS{Enabled: true, CAFile: serverCert, CertFile: clientCert, KeyFile: clientKey},
		SASL:    kafka.SASL{Mechanism: "PLAIN", User: "pizza", Password: "secret"},
	}
}

func TestTLSWithCertificatesAndPassword(t *testing.T) {
	config := encrypted(t)
	kafkatest.Ensure(t, config, orders)
	kafkatest.Produce(t, kafkatest.Client(t, config), "order-events", "a")
}

func TestACertificateThatDoesNotVerifyIsNotWaitedFor(t *testing.T) {
	config := encrypted(t)
	for name, wrong := range map[string]func(*kafka.Config){
		"another authority": func(c *kafka.Config) { c.TLS.CAFile, _ = certificate(t) },
		"another name":      func(c *kafka.Config) { c.TLS.ServerName = "kafka.example" },
	} {
		t.Run(name, func(t *testing.T) {
			config := config
			wrong(&config)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			err := kafka.EnsureTopics(ctx, config, nil, orders)
			var unverified *tls.CertificateVerificationError
			if !errors.As(err, &unverified) || ctx.Err() != nil {
				t.Fatalf("%v, want at once that the certificate does not verify", err)
			}
		})
	}
}

func TestTLSToAPlainBroker(t *testing.T) {
	config := kafkatest.Start(t)
	config.TLS.Enabled = true
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := kafka.EnsureTopics(ctx, config, nil, orders); err == nil {
		t.Fatal("spoke TLS with a broker that does not")
	} else {
		t.Log(err)
	}
}
