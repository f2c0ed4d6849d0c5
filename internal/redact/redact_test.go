package redact

import (
	"slices"
	"strings"
	"testing"
)

// secret is in every URL of the tests, in whole or in parts.
const secret = "hunter2"

func TestOfAURLOnlySchemeHostAndPortAreShown(t *testing.T) {
	for raw, want := range map[string]string{
		"https://gw.example/send?apikey=hunter2":                  "https://gw.example",
		"https://gw.example:8443/hunter2/send#hunter2":            "https://gw.example:8443",
		"https://hunter2@gw.example":                              "https://gw.example",
		"postgres://u:hunter2@db:5432/pizza?sslpassword=hunter2":  "postgres://db:5432",
		"postgres://u:hunter2@a:5432,[::1]:5433/pizza":            "postgres://a:5432,[::1]:5433",
		"postgres://u:p@hunter2@db/pizza":                         "postgres://db",
		"postgres://u:4432/hunter2@db:5432/pizza":                 "postgres://xxxxx",
		"postgres://u:4432?hunter2@db:5432/pizza":                 "postgres://xxxxx",
		"postgres://u:4432#hunter2@db:5432/pizza":                 "postgres://xxxxx",
		"smtp://u:hun%ter2@mail.example:25":                       "smtp://mail.example:25",
		"https://gw.example/send?mail=a@b.example&apikey=hunter2": "https://xxxxx",
		"host=db user=u password=hunter2":                         "xxxxx",
		"hunter2":                                                 "xxxxx",
		"u:hunter2@db":                                            "xxxxx",
		"hunter2 ://db":                                           "xxxxx",
		"postgres://u:hunter2":                                    "postgres://xxxxx",
		"postgres:///pizza?host=/var/run/postgresql":              "postgres://",
		"postgres://%2Fvar%2Frun%2Fpostgresql/hunter2":            "postgres://%2Fvar%2Frun%2Fpostgresql",
		"https://пицца.рф/hunter2":                                "https://пицца.рф",
	} {
		if got := URL(raw); got != want || strings.Contains(got, secret) {
			t.Errorf("%s is shown as %s, want %s", raw, got, want)
		}
	}
}

func TestValuesWithoutASecretAreShown(t *testing.T) {
	for raw, want := range map[string]string{
		"127.0.0.1:9092": "127.0.0.1:9092", "info": "info", "": "",
		"u:hunter2@127.0.0.1:9092": "xxxxx", "kafka://u:hunter2@127.0.0.1:9092": "kafka://127.0.0.1:9092",
	} {
		if got := Value(raw); got != want {
			t.Errorf("%q is shown as %q, want %q", raw, got, want)
		}
	}
}

func TestOfACommandLineOnlyNamesAreShown(t *testing.T) {
	got := CommandLine([]string{"/bin/pizza", "run", "--ops-token=hunter2", "--ops-token", "hunter2", "-ohunter2", "--database-url=postgres://u:hunter2=@db"})
	want := []string{"/bin/pizza", "xxxxx", "--ops-token=xxxxx", "--ops-token", "xxxxx", "xxxxx", "--database-url=xxxxx"}
	if !slices.Equal(got, want) {
		t.Errorf("shown %v, want %v", got, want)
	}
}
