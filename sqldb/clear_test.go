package sqldb_test

import (
	"errors"
	"strings"
	"testing"

	"pizzaflow/sqldb"
)

func TestNoSilentFallBackToClearText(t *testing.T) {
	for _, mode := range []string{"PGSSLMODE", "PGSSLROOTCERT", "PGHOST", "PGSERVICE"} {
		t.Setenv(mode, "") // this machine may have them
	}
	for url, refused := range map[string]bool{
		"postgres://u@db.example/pizza":                                   true,
		"postgres://u@192.0.2.7:5433/pizza":                               true,
		"postgresql://u@[2001:db8::7]/pizza?sslmode=prefer":               true,
		"postgres://u@db.example/pizza?sslmode=allow":                     true,
		"postgres://u@localhost,db.example/pizza":                         true,
		"postgres://u@db.example/pizza?host=127.0.0.1,10.0.0.7&port=1,2":  true,
		"postgres://u@localhost.example/pizza":                            true,
		"postgres://u@db.example/pizza?sslmode=disable":                   false,
		"postgres://u@db.example/pizza?sslmode=require":                   false,
		"postgres://u@db.example/pizza?sslmode=verify-ca":                 false,
		"postgres://u@db.example,db2.example/pizza?sslmode=verify-full":   false,
		"postgres://u@localhost/pizza":                                    false,
		"postgres://u@127.0.0.1:5433/pizza?sslmode=prefer":                false,
		"postgres://u@[::1]/pizza":                                        false,
		"postgres:///pizza?host=/var/run/postgresql":                      false,
		"postgres://u@db1.example,db2.example:5433/pizza?sslmode=disable": false,
		"sqlite:pizza.db": false,
	} {
		err := sqldb.Check(url)
		if errors.Is(err, sqldb.ErrClear) != refused || !refused && err != nil {
			t.Errorf("%s: %v, want it refused: %v", url, err, refused)
		}
		if refused && !strings.Contains(err.Error(), "sslmode=verify-full") {
			t.Errorf("%s: %v does not say what to write", url, err)
		}
	}
	if _, err := sqldb.Open(t.Context(), "postgres://u@192.0.2.7/pizza"); !errors.Is(err, sqldb.ErrClear) || sqldb.IsUnavailable(err) {
		t.Errorf("Open: %v, want a refusal that is not waited for", err)
	}
	t.Setenv("PGSSLMODE", "verify-full")
	if err := sqldb.Check("postgres://u@db.example/pizza"); err != nil {
		t.Errorf("with PGSSLMODE=verify-full: %v", err)
	}
}
