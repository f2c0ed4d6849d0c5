// Mutants shows that the tests notice when a protection is taken out: for each
// line of its list it makes one change to one file of a copy of the project, and
// runs the one test that must fail then.
//
//	make mutants                    all of them
//	make mutants ONLY=inbox         those whose name matches a regular expression
//
// A mutant that survives, that no longer applies or that does not compile is a
// failure. Before the first mutant of a test the test must pass without one.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// A mutant is one change that a test must notice.
type mutant struct {
	name string // what is broken, in a few words
	old  string // code, or a part of it, that stands in the project once; see find
	new  string // what stands there instead
	test string // the arguments of go test that make it notice: package and -run
	env  string // an environment variable without which the test is skipped
}

func main() {
	only := flag.String("only", "", "`regexp`: only mutants whose name matches")
	list := flag.Bool("list", false, "check that every mutant applies, run nothing")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *only, *list); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

// run tries the mutants and prints what became of each.
func run(ctx context.Context, only string, listOnly bool) (err error) {
	wanted, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	root, err := projectRoot()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "pizzaflow-mutants-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := copyTree(dir, root); err != nil {
		return err
	}
	sources, err := readSources(dir)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	healthy, bad := map[string]error{}, 0
	for _, m := range mutants {
		if !wanted.MatchString(m.name) || ctx.Err() != nil {
			continue
		}
		began := time.Now()
		where, verdict, ok := try(ctx, dir, m, sources, healthy, listOnly)
		if !ok {
			bad++
		}
		fmt.Fprintf(os.Stderr, "%s: %s\n", m.name, verdict)
		fmt.Fprintf(table, "%s\t%s\t%s\t%.0f s\n", m.name, where, verdict, time.Since(began).Seconds())
	}
	if err := errors.Join(table.Flush(), ctx.Err()); err != nil {
		return err
	}
	if bad > 0 {
		return fmt.Errorf("%d mutants were not caught", bad)
	}
	return nil
}

// try makes the change in the copy, runs the test, and takes the change back.
func try(ctx context.Context, dir string, m mutant, sources []source, healthy map[string]error, listOnly bool) (where, verdict string, ok bool) {
	p, err := find(sources, m.old)
	if err != nil {
		return "", "DOES NOT APPLY: " + err.Error(), false
	}
	where = p.source.path
	if listOnly {
		return where, "applies", true
	}
	if m.env != "" && os.Getenv(m.env) == "" {
		return where, "not run: needs " + m.env, true
	}
	if _, known := healthy[m.test]; !known {
		out, err := goTest(ctx, dir, m.test)
		if healthy[m.test] = err; err != nil {
			fmt.Fprintf(os.Stderr, "%s\n", out)
		}
	}
	if healthy[m.test] != nil {
		return where, "THE TEST FAILS WITHOUT IT", false
	}
	path := filepath.Join(dir, where)
	if err := os.WriteFile(path, p.mutated(m.new), 0o600); err != nil {
		return where, err.Error(), false
	}
	out, testErr := goTest(ctx, dir, m.test)
	if err := os.WriteFile(path, p.source.text, 0o600); err != nil {
		return where, err.Error(), false
	}
	verdict, ok = judge(out, testErr)
	return where, verdict, ok
}

var failedTest = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)

// judge tells a test that failed from one that was never run.
func judge(out []byte, err error) (verdict string, ok bool) {
	failed := failedTest.FindAllSubmatch(out, -1)
	switch {
	case err == nil:
		return "SURVIVED", false
	case bytes.Contains(out, []byte("[build failed]")) || bytes.Contains(out, []byte("[setup failed]")):
		return "DOES NOT COMPILE: " + firstLine(out), false
	case bytes.Contains(out, []byte("panic: test timed out")):
		return "NO VERDICT: the test timed out", false
	case len(failed) > 0:
		return "caught by " + string(failed[len(failed)-1][1]), true
	case bytes.Contains(out, []byte("panic: ")):
		return "caught: " + firstLine(out[bytes.Index(out, []byte("panic: ")):]), true
	}
	return "NO TEST FAILED: " + err.Error(), false
}

func firstLine(out []byte) string {
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			return line
		}
	}
	return ""
}

// goTest runs go test in the copy; -trimpath lets the copies share what the
// build cache holds of the packages that did not change.
func goTest(ctx context.Context, dir, args string) (out []byte, err error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-trimpath", "-tags", "synctests", "-vet=off", "-count=1", "-failfast", "-timeout", "5m"}, strings.Fields(args)...)...)
	cmd.Dir = dir
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // go ends its test
	cmd.WaitDelay = 10 * time.Second
	out, err = cmd.CombinedOutput()
	if err == nil && bytes.Contains(out, []byte("no tests to run")) {
		err = errors.New("no tests to run")
	}
	return out, err
}

// projectRoot is the folder of the project's go.mod, at or above this one.
func projectRoot() (string, error) {
	dir, err := os.Getwd()
	for err == nil {
		mod, readErr := os.ReadFile(filepath.Join(dir, "go.mod"))
		if readErr == nil && bytes.Contains(mod, []byte("\nmodule pizzaflow\n")) || bytes.HasPrefix(mod, []byte("module pizzaflow\n")) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			err = errors.New("there is no module pizzaflow here")
		}
		dir = filepath.Dir(dir)
	}
	return "", err
}

// copyTree copies the project without its history and data.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		switch {
		case entry.IsDir() && (name == ".git" || name == "bin" || name == "pizza-data"):
			return filepath.SkipDir
		case entry.IsDir():
			return os.MkdirAll(filepath.Join(to, name), 0o700)
		case !entry.Type().IsRegular():
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, name), content, info.Mode().Perm())
	})
}
