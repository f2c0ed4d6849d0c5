package pizzaflow_test

import (
	"go/ast"
	"go/token"
	"testing"
)

// TestEveryNameIsDocumented fails for a package or an exported name without a comment: types, functions, methods,
// and constants and variables, where the comment of their group suffices.
func TestEveryNameIsDocumented(t *testing.T) {
	documented := map[string]bool{}
	for _, src := range sources(t) {
		if src.test {
			continue
		}
		documented[src.dir] = documented[src.dir] || src.file.Doc.Text() != ""
		for _, decl := range src.file.Decls {
			for _, name := range undocumented(decl) {
				t.Errorf("%s: %s has no comment", src.fset.Position(name.Pos()), name.Name)
			}
		}
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s: no file says what the package owns and promises", dir)
		}
	}
}

// undocumented returns the exported names that decl declares without a comment.
func undocumented(decl ast.Decl) []*ast.Ident {
	var names []*ast.Ident
	switch d := decl.(type) {
	case *ast.FuncDecl:
		if d.Doc.Text() == "" && ofExportedType(d) {
			names = append(names, d.Name)
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				if s.Doc.Text() == "" && (d.Lparen.IsValid() || d.Doc.Text() == "") {
					names = append(names, s.Name)
				}
			case *ast.ValueSpec:
				if s.Doc.Text() == "" && s.Comment.Text() == "" && d.Doc.Text() == "" {
					names = append(names, s.Names...)
				}
			}
		}
	}
	exported := names[:0]
	for _, name := range names {
		if token.IsExported(name.Name) {
			exported = append(exported, name)
		}
	}
	return exported
}

// ofExportedType tells whether f is a function, or a method of an exported type.
func ofExportedType(f *ast.FuncDecl) bool {
	if f.Recv == nil {
		return true
	}
	typ := f.Recv.List[0].Type
	for {
		switch x := typ.(type) {
		case *ast.StarExpr:
			typ = x.X
		case *ast.IndexExpr:
			typ = x.X
		case *ast.IndexListExpr:
			typ = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return true
		}
	}
}
