package pizzaflow_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// mayImport says which of our packages each package imports: "." is the root, "*" any.
// A package without a line fails. So does a service that imports a service, or a library that knows a pizza word.
var mayImport = map[string]string{
	"event":             "",
	"kafka":             "",
	"kafka/embedded":    "internal/filelock kafka",
	"internal/filelock": "",
	"internal/redact":   "",
	"internal/retry":    "",
	"load":              "event",
	"logs":              "",
	"measure":           "",
	"ops":               "internal/filelock outbox outbox/admin sqldb verify web",
	"sandbox":           "",
	"sqldb":             "",
	"web":               "",
	"verify":            "event load sqldb",
	"kafka/kafkatest":   "kafka kafka/embedded",
	"sqldb/sqltest":     "sqldb",

	// the library: its parts stand beside each other, on what is internal to it
	"outbox":                  "internal/crash outbox/internal/handoff outbox/internal/store outbox/internal/wire sqldb",
	"outbox/relay":            "internal/crash measure outbox outbox/internal/handoff outbox/internal/store outbox/internal/wire sqldb",
	"outbox/inbox":            "internal/crash measure outbox outbox/internal/store outbox/internal/wire sqldb",
	"outbox/admin":            "outbox/internal/store outbox/internal/wire sqldb",
	"outbox/internal/handoff": "outbox/internal/store",
	"outbox/internal/store":   "outbox/internal/wire sqldb",
	"outbox/internal/wire":    "",
	"job":                     "internal/crash sqldb",
	"job/jobtest":             "job sqldb",
	"internal/crash":          "",
	"internal/testkit":        "",

	"order":        "event measure outbox outbox/inbox sqldb web",
	"payment":      "event job measure outbox outbox/inbox sqldb",
	"notification": "event job measure outbox outbox/inbox sqldb",
	"frontend":     "event web",
	".":            "event frontend internal/filelock kafka kafka/embedded notification ops order outbox outbox/inbox outbox/relay payment sandbox sqldb verify web",
	"cmd/pizza":    ". kafka load logs ops outbox/admin verify",
	"e2e":          "*",
	"e2e/servers":  "",
}

// allMayImport are ours that every package imports besides: they import none and know nothing.
const allMayImport = "internal/redact internal/retry"

// testsMayImport are ours that every package's tests import besides: real things to run against.
const testsMayImport = "internal/testkit kafka kafka/embedded kafka/kafkatest sandbox sqldb sqldb/sqltest"

// testsOfMayImport are ours that the tests of a package import besides.
var testsOfMayImport = map[string]string{
	"outbox":       "job job/jobtest outbox/admin outbox/inbox outbox/relay",
	"outbox/inbox": "outbox/admin outbox/relay",
	"outbox/relay": "outbox/admin outbox/inbox",
	"job":          "job/jobtest outbox",
	"frontend":     "order outbox",
}

// importers are the packages that alone import a module of others: the longest matching path counts, "tests" is any test.
var importers = map[string]string{
	"github.com/alecthomas/kong":          "cmd/pizza",
	"github.com/gofrs/flock":              "internal/filelock",
	"github.com/jackc/pgx":                "sqldb sqldb/sqltest e2e e2e/servers",
	"github.com/klauspost/compress":       "kafka/embedded",
	"github.com/pierrec/lz4":              "kafka/embedded",
	"github.com/pressly/goose":            "sqldb",
	"github.com/prometheus/client_golang": "frontend measure notification order outbox/inbox outbox/relay payment web . tests",
	"github.com/twmb/franz-go":            "frontend kafka kafka/embedded kafka/kafkatest outbox outbox/admin outbox/inbox outbox/internal/wire outbox/relay verify e2e tests",
	"github.com/twmb/franz-go/pkg/kfake":  "kafka/embedded kafka/kafkatest tests",
	"golang.org/x/net":                    ". order",
	"modernc.org/sqlite":                  "sqldb",
	"pizzaflow/internal/testkit":          "tests",
	"pizzaflow/job/jobtest":               "tests",
	"pizzaflow/sqldb/sqltest":             "tests",
	"pizzaflow/kafka/kafkatest":           "tests",
	"testing":                             "internal/testkit job/jobtest kafka/kafkatest sqldb/sqltest e2e e2e/servers tests",
}

// pure are the files that hold a service's domain: no storage, no transport, no call to wait for.
var pure = []string{"order/order.go", "payment/payment.go", "notification/notification.go"}

var impure = []string{"database/sql", "net/http", "context"}

func TestImportsFollowTheRules(t *testing.T) {
	for _, src := range sources(t) {
		ours, known := mayImport[src.dir]
		if !known {
			t.Errorf("%s: package %s has no line in mayImport", src.path, src.dir)
			continue
		}
		ours += " " + allMayImport
		if src.test {
			ours += " " + testsMayImport + " " + testsOfMayImport[src.dir] + " " + src.dir
		}
		for _, spec := range src.file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			pos := src.fset.Position(spec.Pos())
			if own, is := strings.CutPrefix(imported+"/", "pizzaflow/"); is && !has(ours, "*") && !has(ours, path.Clean(own)) {
				t.Errorf("%s: %s may not import %s", pos, src.dir, imported)
			}
			module, allowed := importersOf(imported)
			if permitted := has(allowed, src.dir) || src.test && has(allowed, "tests"); module != "" && !permitted {
				t.Errorf("%s: %s is imported only by: %s", pos, module, allowed)
			}
			if slices.Contains(pure, src.path) && slices.Contains(impure, imported) {
				t.Errorf("%s: the domain is pure, so %s has no place in %s", pos, imported, src.path)
			}
		}
	}
}

func has(list, name string) bool { return slices.Contains(strings.Fields(list), name) }

func importersOf(imported string) (module, allowed string) {
	for m, a := range importers {
		if (imported == m || strings.HasPrefix(imported, m+"/")) && len(m) > len(module) {
			module, allowed = m, a
		}
	}
	return module, allowed
}

// source is one parsed Go file of this module.
type source struct {
	path, dir string // from the root, with slashes; the root's own dir is "."
	test      bool
	fset      *token.FileSet
	file      *ast.File
}

// sources parses every Go file of the module, whatever its build tags.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			_, noModule := os.Stat(filepath.Join(name, "go.mod"))
			if name != "." && (noModule == nil || entry.Name() == "testdata" || strings.ContainsAny(entry.Name()[:1], "._")) {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(name) != ".go" {
			return nil
		}
		file, err := parser.ParseFile(fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
		slashed := filepath.ToSlash(name)
		all = append(all, source{slashed, path.Dir(slashed), strings.HasSuffix(name, "_test.go"), fset, file})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatal("no Go file found")
	}
	return all
}
