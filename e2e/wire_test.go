package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"

	server "pizzaflow/e2e/servers"
	"pizzaflow/kafka"
)

// mechanisms are the SASL mechanisms of the users. The password of each is its name.
var mechanisms = map[string]string{
	"order": "SCRAM-SHA-256", "payment": "SCRAM-SHA-512", "notification": "PLAIN", "frontend": "SCRAM-SHA-512", "operator": "SCRAM-SHA-256",
}

// TestSecureWire runs the services on a PostgreSQL and an Apache Kafka that require
// TLS, each as a user of its own with the rights that docs/operations.md lists.
func TestSecureWire(t *testing.T) {
	t.Parallel()
	cluster := server.SecureKafka(t, "notification", "operator")
	database := server.SecurePostgres(t)
	config := kafka.Config{
		Brokers: strings.Split(cluster.Brokers, ","), TLS: kafka.TLS{Enabled: true, CAFile: cluster.CA},
		SASL: kafka.SASL{Mechanism: "PLAIN", User: server.Admin, Password: server.Admin},
	}
	access, err := config.Options()
	if err != nil {
		t.Fatal(err)
	}
	s := apart
	s.own = &ownServers{database: verified(t, database.URL, database.CA), brokers: config.Brokers, access: access, login: func(services string) map[string]string {
		if mechanisms[services] == "" {
			return nil // the sandbox
		}
		return map[string]string{
			"KAFKA_TLS": "true", "KAFKA_TLS_CA": cluster.CA,
			"KAFKA_SASL_MECHANISM": mechanisms[services], "KAFKA_SASL_USER": services, "KAFKA_SASL_PASSWORD": services,
		}
	}}
	d := prepare(t, s)
	admin := d.admin(t)
	createUsers(t, admin)
	grant(t, admin, handbookRights(t)...)

	d.testWithoutTopics(t)
	d.start(s.processes...)
	first := d.place(t, customer(0, ""))
	d.checkServed(t, first, 0)
	t.Run("dead letters", d.testSecureDeadLetters)
	t.Run("a missing right to write", func(t *testing.T) { d.testMissingWrite(t, admin) })
	t.Run("a missing right to read", func(t *testing.T) { d.testMissingRead(t, admin) })
	t.Run("logins", d.testLogins)
	t.Run("PostgreSQL", func(t *testing.T) { d.testVerifiedDatabase(t) })
}

// verified is the URL with sslmode=verify-full and the authority.
func verified(t *testing.T, rawURL, authority string) string {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	u.RawQuery = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {authority}}.Encode()
	return u.String()
}

// createUsers creates the users that log in by SCRAM, operator by both kinds.
func createUsers(t *testing.T, admin *kadm.Client) {
	t.Helper()
	create := func(user, mechanism string) {
		kind := map[string]kadm.ScramMechanism{"SCRAM-SHA-256": kadm.ScramSha256, "SCRAM-SHA-512": kadm.ScramSha512}[mechanism]
		if kind == 0 {
			return // users of PLAIN are in the broker's configuration
		}
		altered, err := admin.AlterUserSCRAMs(t.Context(), nil, []kadm.UpsertSCRAM{{User: user, Mechanism: kind, Iterations: 4096, Password: user}})
		if err == nil {
			err = altered.Error()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for user, mechanism := range mechanisms {
		create(user, mechanism)
	}
	create("operator", "SCRAM-SHA-512")
}

// A right is a line of the table in docs/operations.md.
type right struct{ user, kind, name, operations string }

// handbookRights reads the table of docs/operations.md.
func handbookRights(t *testing.T) []right {
	t.Helper()
	handbook, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	var rights []right
	for _, m := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (topic|group) `([\\w-]+)` \\| ([\\w, ]+) \\|$").FindAllStringSubmatch(string(handbook), -1) {
		rights = append(rights, right{m[1], m[2], m[3], m[4]})
	}
	if len(rights) < 15 {
		t.Fatalf("docs/operations.md has no table of rights: %v", rights)
	}
	return rights
}

func (r right) acl(t *testing.T) *kadm.ACLBuilder {
	t.Helper()
	var operations []kadm.ACLOperation
	for name := range strings.SplitSeq(r.operations, ", ") {
		op, err := kmsg.ParseACLOperation(name)
		if err != nil {
			t.Fatal(err)
		}
		operations = append(operations, op)
	}
	acl := kadm.NewACLs().Allow("User:" + r.user).AllowHosts("*").Operations(operations...).ResourcePatternType(kadm.ACLPatternLiteral)
	if r.kind == "group" {
		return acl.Groups(r.name)
	}
	return acl.Topics(r.name)
}

func grant(t *testing.T, admin *kadm.Client, rights ...right) {
	t.Helper()
	for _, r := range rights {
		created, err := admin.CreateACLs(t.Context(), r.acl(t))
		for _, c := range created {
			err = errors.Join(err, c.Err)
		}
		if err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
		awaitRight(t, admin, r, len(created))
	}
}

func revoke(t *testing.T, admin *kadm.Client, r right) {
	t.Helper()
	deleted, err := admin.DeleteACLs(t.Context(), r.acl(t))
	if err == nil && (len(deleted) != 1 || len(deleted[0].Deleted) != 1) {
		err = fmt.Errorf("deleted %+v", deleted)
	}
	if err != nil {
		t.Fatalf("revoke %+v: %v", r, err)
	}
	awaitRight(t, admin, r, 0)
}

// awaitRight waits until the broker has so many ACLs of the right: the controller
// answers before.
func awaitRight(t *testing.T, admin *kadm.Client, r right, acls int) {
	t.Helper()
	eventually(t, startLimit, func() string {
		described, err := admin.DescribeACLs(t.Context(), r.acl(t))
		found := 0
		for _, d := range described {
			err, found = errors.Join(err, d.Err), found+len(d.Described)
		}
		if err != nil || found != acls {
			return fmt.Sprintf("%+v: %d ACLs, want %d: %v", r, found, acls, err)
		}
		return ""
	})
}

// testWithoutTopics starts a service that may not create its topics, and then
// creates them as operator.
func (d *deployment) testWithoutTopics(t *testing.T) {
	t.Helper()
	d.launch("order")
	eventually(t, startLimit, func() string {
		if wrong := d.process("order").ready(t.Context()); !strings.Contains(wrong, "the topics are not there yet") {
			return "/readyz does not say that the topics are missing: " + wrong
		}
		for _, line := range logLines(t, d.process("order").log) {
			if line["msg"] == "waiting for the topics" && strings.Contains(fmt.Sprint(line["reason"]), "pizza topics apply") {
				return ""
			}
		}
		return "the log does not say that pizza topics apply creates the topics"
	})
	d.pizza(t, "order", 1, "TOPIC_AUTHORIZATION_FAILED", "topics", "apply")
	d.pizza(t, "operator", 0, "topic created", "topics", "apply")
	d.pizza(t, "operator", 0, "The topics are as the options say.", "topics", "plan", "--check")
	d.awaitReady("order")
	d.stop("order")
}

// pizza runs a command as the user, a service or the operator, with the settings
// KEY=value among the arguments, and checks its exit code and that its output has the
// words.
func (d *deployment) pizza(t *testing.T, user string, code int, words string, args ...string) string {
	t.Helper()
	services := user
	if user == "operator" {
		services = "frontend" // any
	}
	ctx, cancel := context.WithTimeout(t.Context(), commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, pizza)
	cmd.Env, cmd.Dir = d.environment(services), filepath.Dir(d.dir)
	for key, value := range d.setup.own.login(user) {
		cmd.Env = append(cmd.Env, key+"="+value)
	}
	for _, a := range args {
		if key, _, is := strings.Cut(a, "="); is && strings.ToUpper(key) == key {
			cmd.Env = append(cmd.Env, a) // the last one of two values counts
		} else {
			cmd.Args = append(cmd.Args, a)
		}
	}
	var said, out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code || !strings.Contains(said.String()+out.String(), words) {
		t.Fatalf("pizza %s: exit %d, want %d and %q\n%s%s", strings.Join(args, " "), got, code, words, &out, &said)
	}
	return out.String()
}

// testSecureDeadLetters has every group write dead letters.
func (d *deployment) testSecureDeadLetters(t *testing.T) {
	for _, topic := range []string{"order-events", "payment-events"} {
		sent := d.produce(t, record(topic, newID(t), []byte("not JSON")))
		d.awaitDeadLetters(t, sent, 2)
	}
}

// testMissingWrite takes the payment service's right to write away for a while.
func (d *deployment) testMissingWrite(t *testing.T, admin *kadm.Client) {
	missed := right{"payment", "topic", "payment-events", "Write"}
	revoke(t, admin, missed)
	stuck := d.place(t, customer(1, ""))
	eventually(t, paidLimit, func() string {
		var status []struct {
			Refused []struct{ Lane, Reason string }
		}
		out := d.pizza(t, "payment", 0, "", "outbox", "status", "-o", "json", "--service", "payment")
		if err := json.Unmarshal([]byte(out), &status); err != nil {
			t.Fatal(err)
		}
		if len(status) != 1 || len(status[0].Refused) != 1 || status[0].Refused[0].Lane != "payment-events" || !strings.Contains(status[0].Refused[0].Reason, "TOPIC_AUTHORIZATION_FAILED") {
			return "pizza outbox status does not have the refusal: " + out
		}
		return ""
	})
	if o, err := d.getOrder(t.Context(), stuck.OrderID); err != nil || o.Status != "pending" {
		t.Errorf("without the event about its payment the order is %q: %v", o.Status, err)
	}
	grant(t, admin, missed)
	d.checkServed(t, stuck, 1)
}

// testMissingRead takes the order service's rights to read away for a while.
func (d *deployment) testMissingRead(t *testing.T, admin *kadm.Client) {
	missed := []right{{"order", "topic", "payment-events", "Read"}, {"order", "group", "order-service", "Read"}}
	for _, r := range missed {
		revoke(t, admin, r)
	}
	eventually(t, paidLimit, func() string {
		for _, refusal := range []string{"TOPIC_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED"} {
			if !d.logged(t, "kafka error", refusal) {
				return "the log has no " + refusal
			}
		}
		return ""
	})
	stuck := d.place(t, customer(2, ""))
	d.awaitMessages(t, customer(2, "").CustomerEmail, guestPhone(2), 2, paidLimit)
	if o, err := d.getOrder(t.Context(), stuck.OrderID); err != nil || o.Status != "pending" {
		t.Errorf("without its rights the order service knows that the order is %q: %v", o.Status, err)
	}
	grant(t, admin, missed...)
	d.checkServed(t, stuck, 2)
}

// testLogins tries each mechanism, with right and wrong settings.
func (d *deployment) testLogins(t *testing.T) {
	describe := func(code int, words string, settings ...string) {
		t.Helper()
		d.pizza(t, "operator", code, words, append(settings, "topics", "describe")...)
	}
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		describe(0, "order-events-dlq", "KAFKA_SASL_MECHANISM="+mechanism)
		describe(2, "KAFKA_SASL_PASSWORD", "KAFKA_SASL_MECHANISM="+mechanism, "KAFKA_SASL_PASSWORD=wrong")
	}
	describe(2, "KAFKA_SASL_MECHANISM", "KAFKA_SASL_MECHANISM=MD5")
	describe(2, "KAFKA_TLS_CA", "KAFKA_TLS_CA="+server.NewAuthority(t).File)
	describe(2, "KAFKA_TLS_SERVER_NAME", "KAFKA_TLS_SERVER_NAME=kafka.example")
	describe(1, "plaintext connection speaking to a tls endpoint", "KAFKA_TLS=false", "KAFKA_TLS_CA=")
	d.pizza(t, "frontend", 2, "KAFKA_SASL_PASSWORD", "run", "KAFKA_SASL_PASSWORD=wrong")
}

// testVerifiedDatabase checks that the services' sessions are encrypted, and tries a
// server with a certificate that is not trusted.
func (d *deployment) testVerifiedDatabase(t *testing.T) {
	if n := d.value(t, "order", `SELECT COUNT(*) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE a.application_name = 'pizzaflow' AND NOT s.ssl`); n != "0" {
		t.Errorf("%s sessions of the services are in clear", n)
	}
	d.pizza(t, "order", 0, "", "migrate")
	other := "DATABASE_URL=" + verified(t, d.dbURL, server.NewAuthority(t).File)
	d.pizza(t, "order", 2, "DATABASE_URL", "migrate", other)
	d.pizza(t, "order", 2, "DATABASE_URL", "run", other)
	// The certificate is for the address, not for the name.
	named := "DATABASE_URL=" + strings.Replace(d.dbURL, "127.0.0.1", "localhost", 1)
	d.pizza(t, "order", 2, "DATABASE_URL", "migrate", named)
	d.pizza(t, "order", 0, "", "migrate", strings.Replace(named, "verify-full", "verify-ca", 1))
}
