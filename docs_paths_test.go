package pizzaflow_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDocsNameWhatIsThere finds each place that a document for developers names: `web/decode.go: Decode, Encode` is a
// file and two names that it declares. A file without a folder is in the folder of the line's first name in backquotes
// (the map of the code), or in the root.
func TestDocsNameWhatIsThere(t *testing.T) {
	declared := map[string]map[string]bool{}
	for _, src := range sources(t) {
		declared[src.path] = declaredIn(src.file)
	}
	docs, err := filepath.Glob("docs/adr/*.md")
	if err != nil {
		t.Fatal(err)
	}
	place := regexp.MustCompile("`((?:[a-z0-9]+/)*[a-z_0-9]+\\.go)(?:: ([A-Za-z, ]+))?`")
	folder := regexp.MustCompile("`([a-z0-9/]+)`")
	for _, doc := range append(docs, "ARCHITECTURE.md", "CONTRIBUTING.md") {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for n, line := range strings.Split(string(text), "\n") {
			var folders []string
			for _, found := range folder.FindAllStringSubmatch(line, -1) {
				folders = append(folders, found[1])
			}
			for _, found := range place.FindAllStringSubmatch(line, -1) {
				file, names := found[1], found[2]
				in := slices.IndexFunc(folders, func(f string) bool { return declared[path.Join(f, file)] != nil })
				if declared[file] == nil && in >= 0 {
					file = path.Join(folders[in], file)
				}
				if declared[file] == nil && !inEachService(declared, file) {
					t.Errorf("%s:%d: there is no %s", doc, n+1, file)
					continue
				}
				for _, name := range strings.FieldsFunc(names, func(r rune) bool { return r == ',' || r == ' ' }) {
					if !declared[file][name] {
						t.Errorf("%s:%d: %s declares no %s", doc, n+1, file, name)
					}
				}
			}
		}
	}
}

// TestDocsShowCodeThatIsThere parses the Go code of the READMEs and finds each name in it that a package of this module
// is to have.
func TestDocsShowCodeThatIsThere(t *testing.T) {
	declared := map[string]map[string]bool{} // names by the name of their package
	for _, src := range sources(t) {
		if src.dir != "." && !src.test {
			if declared[path.Base(src.dir)] == nil {
				declared[path.Base(src.dir)] = map[string]bool{}
			}
			maps.Copy(declared[path.Base(src.dir)], declaredIn(src.file))
		}
	}
	code := regexp.MustCompile("(?s)```go\n(.*?)```")
	for _, doc := range []string{"README.md", "README.ru.md"} {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		named := 0
		for _, block := range code.FindAllSubmatch(text, -1) {
			file, err := parser.ParseFile(token.NewFileSet(), doc, "package readme\n"+string(block[1]), parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				s, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if pkg, ok := s.X.(*ast.Ident); ok && declared[pkg.Name] != nil {
					named++
					if !declared[pkg.Name][s.Sel.Name] {
						t.Errorf("%s: package %s declares no %s", doc, pkg.Name, s.Sel.Name)
					}
				}
				return true
			})
		}
		if named == 0 {
			t.Errorf("%s shows no code of this module", doc)
		}
	}
}

// inEachService reports whether file is a name that services have for a file of theirs, such as store.go.
func inEachService(declared map[string]map[string]bool, file string) bool {
	return !slices.ContainsFunc([]string{"order", "payment", "notification"}, func(s string) bool {
		return declared[path.Join(s, file)] == nil && file != "http.go"
	})
}

// declaredIn are the names that a file declares at its top level, methods among them.
func declaredIn(file *ast.File) map[string]bool {
	names := map[string]bool{}
	for _, decl := range file.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			names[d.Name.Name] = true
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch s := spec.(type) {
				case *ast.TypeSpec:
					names[s.Name.Name] = true
				case *ast.ValueSpec:
					for _, name := range s.Names {
						names[name.Name] = true
					}
				}
			}
		}
	}
	return names
}

// notInThePicture are the packages of tests, and those that any other may import are in its subgraph "base".
const notInThePicture = "e2e e2e/servers internal/testkit job/jobtest kafka/kafkatest sqldb/sqltest"

// TestImportsAreDrawn compares the picture of the packages in ARCHITECTURE.md with mayImport.
func TestImportsAreDrawn(t *testing.T) {
	text, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, picture, _ := strings.Cut(string(text), "```mermaid\n")
	picture, _, found := strings.Cut(picture, "```")
	if !found {
		t.Fatal("ARCHITECTURE.md has no picture")
	}
	_, base, _ := strings.Cut(picture, "subgraph base")
	node := regexp.MustCompile(`(\w+)\["([^"]+)"\]`)
	packages, undrawn := map[string]string{}, strings.Fields(notInThePicture)
	for _, n := range node.FindAllStringSubmatch(picture, -1) {
		packages[n[1]] = strings.Replace(n[2], "pizzaflow, the root", ".", 1)
	}
	for _, n := range node.FindAllStringSubmatch(base, -1) {
		undrawn = append(undrawn, packages[n[1]])
	}
	drawn := map[string][]string{}
	for line := range strings.Lines(picture) {
		from, to, arrow := strings.Cut(strings.TrimSpace(line), " --> ")
		if !arrow {
			continue
		}
		from, _, _ = strings.Cut(from, "[")
		for id := range strings.SplitSeq(to, " & ") {
			drawn[packages[from]] = append(drawn[packages[from]], packages[id])
		}
	}
	shown := slices.Collect(maps.Values(packages))
	for pkg, imports := range mayImport {
		if slices.Contains(strings.Fields(notInThePicture), pkg) {
			continue
		}
		if !slices.Contains(shown, pkg) {
			t.Errorf("ARCHITECTURE.md: the picture lacks %s", pkg)
		}
		want := slices.DeleteFunc(strings.Fields(imports), func(p string) bool { return slices.Contains(undrawn, p) })
		slices.Sort(want)
		slices.Sort(drawn[pkg])
		if !slices.Equal(drawn[pkg], want) {
			t.Errorf("ARCHITECTURE.md: in the picture %s imports %v, in mayImport %v", pkg, drawn[pkg], want)
		}
	}
}
