package main

import (
	"strings"
	"testing"
)

const sample = `package p

func (p *partition) done() (n int) {
	for n < len(p.window) && p.window[n].done { // in order
		n++
	}
	return n
}

func (q *queue) drop() {
	for i := 0; i < len(q.waiting); i++ {
		q.waiting[i].drop()
	}
}

const statement = ` + "`UPDATE lease SET epoch = epoch + 1 WHERE id = 1`" + `
`

// What a mutant changes is found although names were changed, code was moved and
// formatted, and is changed under its new names.
func TestFind(t *testing.T) {
	moved := "package p\n\nfunc unrelated() {}\n" + strings.NewReplacer(
		"window", "records", "(p *partition)", "(part *partition)", "p.", "part.",
		"for n < len(part.records) && part.records[n].done {", "for n < len(part.records) &&\n\t\tpart.records[n].done {",
		"SET epoch", "\n\t\tSET epoch").Replace(strings.TrimPrefix(sample, "package p\n"))
	for _, c := range []struct{ name, text, old, new, want string }{
		{"as it stands", sample, `	for n < len(p.window) && p.window[n].done {`, `	for n < len(p.window) {`, `for n < len(p.window) { // in order`},
		{"moved", moved, `	for n < len(p.window) && p.window[n].done {`, `	for n < len(p.window) {`, `for n < len(part.records) { // in order`},
		{"inside a literal", sample, `epoch = epoch + 1 WHERE`, `epoch = 0 WHERE`, "`UPDATE lease SET epoch = 0 WHERE id = 1`"},
		{"moved inside a literal", moved, `SET epoch = epoch + 1`, `SET epoch = 0`, "SET epoch = 0 WHERE id = 1`"},
		{"half of the names are others", sample, `for i := 0; i < len(s.items); i++ { s.items[i].drop()`, `for i := 1; i < len(s.items); i++ { s.items[i].drop()`, `for i := 1; i < len(q.waiting); i++ { q.waiting[i].drop()`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := find([]source{{"p.go", []byte(c.text), wordsOfGo([]byte(c.text))}}, c.old)
			if err != nil {
				t.Fatal(err)
			}
			if got := string(p.mutated(c.new)); !strings.Contains(got, c.want) {
				t.Errorf("got %s\nwant in it: %s", got, c.want)
			}
		})
	}
}

func TestFindRefuses(t *testing.T) {
	for _, c := range []struct{ name, old, want string }{
		{"what stands nowhere", `for n > len(p.window) {`, "nowhere"},
		{"what stands twice", `[n].`, "several places"},
		{"what has the shape alone", `for x < len(y.z) && y.z[x].a {`, "shape"},
		{"one name for two", `for n < len(n.window) && n.window[n].done {`, "nowhere"},
		{"another word in a literal", `SET era = era + 1`, "nowhere"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := sample + "\nfunc f() { a[n].b(); c[n].d() }\n"
			p, err := find([]source{{"p.go", []byte(text), wordsOfGo([]byte(text))}}, c.old)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("found %q, error %v, want one that says %q", text[p.from:p.to], err, c.want)
			}
		})
	}
}
