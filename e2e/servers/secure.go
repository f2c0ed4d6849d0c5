package servers

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Admin is the superuser of SecureKafka. It logs in by PLAIN with its name as password.
const Admin = "admin"

// SecureKafka starts one broker with TLS, with PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512, and with ACLs: only Admin may do
// what no ACL allows. Admin and users log in by PLAIN, each with its name as password; Admin can create others for
// SCRAM.
func SecureKafka(t testing.TB, users ...string) *Cluster {
	t.Helper()
	c := &Cluster{t: t, dir: folder(t, "kafka")}
	t.Cleanup(func() { script(t, "kafka-stop", c.dir) })
	a := NewAuthority(t)
	c.CA = a.File
	key, cert := a.Issue(t, "127.0.0.1")
	pemFile := write(t, c.dir, "broker.pem", append(key, cert...))

	var known strings.Builder
	for _, u := range append([]string{Admin}, users...) {
		fmt.Fprintf(&known, ` user_%s="%s"`, u, u)
	}
	settings := write(t, c.dir, "settings", []byte(`
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required username="`+Admin+`" password="`+Admin+`"`+known.String()+`;
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
ssl.keystore.type=PEM
ssl.keystore.location=`+pemFile+`
ssl.truststore.type=PEM
ssl.truststore.location=`+a.File+`
allow.everyone.if.no.acl.found=false
super.users=User:`+Admin+`;User:ANONYMOUS
`)) // ANONYMOUS is the broker itself for the controller; clients have a name
	c.Brokers = scriptWith(t, []string{"KAFKA_PROTOCOL=SASL_SSL", "KAFKA_SETTINGS=" + settings}, "kafka", c.dir, "1")
	return c
}

// An Authority issues certificates for one test.
type Authority struct {
	// File is its certificate in PEM, for clients that shall trust it.
	File string

	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// NewAuthority creates an authority.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Pizzaflow tests"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err == nil {
		a.cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	a.File = write(t, t.TempDir(), "ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return a
}

// Issue creates a key (PKCS #8) and a certificate of a server at the address, both in PEM.
func (a *Authority) Issue(t testing.TB, address string) (key, cert []byte) {
	t.Helper()
	private := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: address}, IPAddresses: []net.IP{net.ParseIP(address)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, private.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func write(t testing.TB, dir, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// giveToPostgres makes files the property of PostgreSQL's user, which is nobody if the test runs as root.
func giveToPostgres(t testing.TB, files ...string) {
	t.Helper()
	if os.Getuid() != 0 {
		return
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.Atoi(nobody.Uid)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if err := os.Chown(file, uid, -1); err != nil {
			t.Fatal(err)
		}
	}
}
