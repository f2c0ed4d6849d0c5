package main

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"pizzaflow"
)

// shownOptions are the values that `pizza config` shows, by option.
func shownOptions(t *testing.T, env map[string]string, args ...string) map[string]string {
	t.Helper()
	code, stdout, stderr := pizza(t, env, append([]string{"config", "-o", "json"}, args...)...)
	var options []pizzaflow.Option
	if err := json.Unmarshal([]byte(stdout), &options); err != nil || code != exitDone {
		t.Fatalf("exit %d: %v\n%s", code, err, stderr)
	}
	values := map[string]string{}
	for _, o := range options {
		values[o.Env] = o.Value
	}
	return values
}

// TestSetButEmptyIsUnset sets every option to nothing, in the environment and by its flag.
func TestSetButEmptyIsUnset(t *testing.T) {
	empty, blank := map[string]string{}, map[string]string{}
	var flags []string
	for _, o := range (pizzaflow.Config{}).Options() {
		empty[o.Env], blank[o.Env] = "", " \t\n"
		flags = append(flags, o.Flag+"=")
	}
	want := map[string]string{}
	for _, o := range (pizzaflow.Config{}).Options() {
		want[o.Env] = o.Default
	}
	want["KAFKA_PLAINTEXT"], want["KAFKA_TLS"] = "false", "false"
	for how, got := range map[string]map[string]string{
		"environment": shownOptions(t, empty), "spaces": shownOptions(t, blank), "flags": shownOptions(t, map[string]string{"LOG_LEVEL": "warn", "RATE_LIMIT": "7"}, flags...),
	} {
		for env, value := range want {
			switch env {
			case "DATABASE_IDLE_TIME", "DATABASE_CONNECTION_LIFE", "KAFKA_RETENTION", "ORDER_DEADLINE", "PAYMENT_TTL":
				value = got[env] // a duration is written in another way
			}
			if got[env] != value {
				t.Errorf("%s: %s is %q, want %q", how, env, got[env], value)
			}
		}
	}
}

func TestFlagsWinOverTheEnvironment(t *testing.T) {
	got := shownOptions(t, map[string]string{
		"RATE_LIMIT": "600", "RETRY_ATTEMPTS": "three", "KAFKA_TLS": "true", "KAFKA_BROKERS": "127.0.0.1:1", "LOG_LEVEL": "debug", "KAFKA_PLAINTEXT": "",
	}, "--rate-limit=0", "--retry-attempts", " 4 ", "--kafka-tls=no", "--kafka-brokers", "127.0.0.1:2, 127.0.0.1:3", "--kafka-brokers=127.0.0.1:4", "--log-level=Error", "--kafka-plaintext")
	want := map[string]string{
		"RATE_LIMIT": "0", "RETRY_ATTEMPTS": "4", "KAFKA_TLS": "false", "KAFKA_BROKERS": "127.0.0.1:2,127.0.0.1:3,127.0.0.1:4", "LOG_LEVEL": "error", "KAFKA_PLAINTEXT": "true",
	}
	for env, value := range want {
		if got[env] != value {
			t.Errorf("%s is %q, want %q", env, got[env], value)
		}
	}
}

// TestConfigAndRunFindTheSameFaults compares what both say of values that cannot be read or used.
func TestConfigAndRunFindTheSameFaults(t *testing.T) {
	env := map[string]string{
		"RETRY_ATTEMPTS": "three", "RETRY_DELAY": "5", "LOG_LEVEL": "loud", "SERVICES": "order,oven", "KAFKA_TLS": "maybe", "KAFKA_SASL_MECHANISM": "MD5",
		"SMTP_URL": "imap://u:hunter2@x", "SMS_URL": "sms:hunter2", "PAYMENT_PROVIDER_URL": "bank://hunter2@x", "MAIL_FROM": "nobody", "PUBLIC_URL": "https://hunter2@x/y",
		"ORDER_URL": "http://u:hunter2@x", "KAFKA_BROKERS": "u:hunter2@x:1", "TRUSTED_PROXIES": "here", "ADMIN_ADDR": "1", "CURRENCY": "JPY", "DATABASE_URL": "postgres://u:1/hunter2@x/y",
	}
	_, _, ofRun := pizza(t, env)
	for _, args := range [][]string{{"config"}, {"run"}, {"migrate"}, {"verify"}, {"dlq", "list"}, {"topics"}} {
		code, stdout, stderr := pizza(t, env, args...)
		if code != exitUsage || !reflect.DeepEqual(stderr, ofRun) || strings.Contains(stdout+stderr, "hunter2") {
			t.Errorf("%v: exit %d, and says\n%s\nwant what run says\n%s", args, code, stderr, ofRun)
		}
	}
	for key := range env {
		if !strings.Contains(ofRun, key+":") {
			t.Errorf("%s is not told: %s", key, ofRun)
		}
	}
	noFile := map[string]string{"KAFKA_BROKERS": "127.0.0.1:1", "KAFKA_TLS": "yes", "KAFKA_TLS_CA": "/no/such/file"}
	for _, command := range []string{"config", "run"} {
		if code, _, stderr := pizza(t, noFile, command); code != exitUsage || !strings.Contains(stderr, "KAFKA_TLS_CA:") {
			t.Errorf("%s without a file: exit %d: %s", command, code, stderr)
		}
	}
	for key, value := range env { // each alone
		code, _, stderr := pizza(t, map[string]string{key: value}, "config")
		if code != exitUsage || !strings.Contains(stderr, key+":") {
			t.Errorf("%s=%s: exit %d: %s", key, value, code, stderr)
		}
	}
}
