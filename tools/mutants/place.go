package main

import (
	"errors"
	"fmt"
	"go/scanner"
	"go/token"
	"go/types"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A mutant's old text is found by its tokens, anywhere in the project's Go files
// but tests. White space and comments do not count, and a name may be another
// one, if it is the same wherever the old text repeats it: so nothing has to be
// changed here when code is formatted, moved, or names in it are changed.

// A word is a token of Go, or a part of one: an operator is as many words as it
// has characters, and a literal is split as if it were code.
type word struct {
	text     string
	from, to int
	name     bool // an identifier of the project, or of a library
}

// A source is a Go file.
type source struct {
	path  string // from the root of the project
	text  []byte
	words []word
}

// readSources reads the project's Go files but tests.
func readSources(root string) (all []source, err error) {
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			_, noModule := os.Stat(filepath.Join(path, "go.mod"))
			if path != root && (noModule == nil || strings.ContainsAny(entry.Name()[:1], "._") || entry.Name() == "testdata") {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		all = append(all, source{name, text, wordsOfGo(text)})
		return err
	})
	return all, err
}

// wordsOfGo splits a Go file.
func wordsOfGo(text []byte) (words []word) {
	fset := token.NewFileSet()
	file := fset.AddFile("", fset.Base(), len(text))
	var s scanner.Scanner
	s.Init(file, text, nil, 0)
	for {
		pos, tok, lit := s.Scan()
		switch {
		case tok == token.EOF:
			return words
		case tok == token.SEMICOLON && lit == "\n":
			continue
		case lit == "":
			lit = tok.String()
		}
		from := file.Offset(pos)
		name := tok == token.IDENT && types.Universe.Lookup(lit) == nil
		for _, w := range wordsOf(lit) {
			words = append(words, word{w.text, from + w.from, from + w.to, name})
		}
	}
}

// wordsOf splits a piece of code, or of a literal.
func wordsOf(text string) (words []word) {
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRuneInString(text[i:])
		from := i
		for i += n; partOfWord(r) && i < len(text); i += n {
			var next rune
			if next, n = utf8.DecodeRuneInString(text[i:]); !partOfWord(next) {
				break
			}
		}
		if !unicode.IsSpace(r) {
			words = append(words, word{text: text[from:i], from: from, to: i})
		}
	}
	return words
}

func partOfWord(r rune) bool {
	return r == '_' || r == '$' || unicode.IsLetter(r) || unicode.IsDigit(r)
}

// A place is where a mutant's old text stands.
type place struct {
	source   *source
	from, to int
	names    map[string]string // the old text's names, and those that stand there
	same     int               // how many of the names in it are the old text's own
}

var comment = regexp.MustCompile(`(?m)(^|\s)// .*$`)

// find finds the one place where old stands, or where it stands with the fewest
// other names.
func find(sources []source, old string) (place, error) {
	var best place
	twice := false
	pattern := wordsOf(comment.ReplaceAllString(old, ""))
	for i := range sources {
		for at := range sources[i].words {
			p, ok := match(pattern, sources[i].words[at:])
			if !ok || best.source != nil && p.same < best.same {
				continue
			}
			twice = best.source != nil && p.same == best.same
			p.source = &sources[i]
			best = p
		}
	}
	switch {
	case best.source == nil:
		return place{}, errors.New("the old text stands nowhere")
	case twice:
		return place{}, errors.New("the old text stands in several places: give it more lines")
	case 2*best.same < len(best.names):
		return place{}, fmt.Errorf("the old text stands nowhere; something of its shape is in %s", best.source.path)
	}
	return best, nil
}

// match compares a pattern with the beginning of words.
func match(pattern, words []word) (p place, ok bool) {
	if len(pattern) == 0 || len(words) < len(pattern) {
		return place{}, false
	}
	for i, w := range pattern {
		if there := words[i]; !there.name && w.text != there.text || there.name && !mayBeName(w.text) {
			return place{}, false
		}
	}
	p.names = map[string]string{}
	taken := map[string]bool{}
	for i, w := range pattern {
		there := words[i]
		if known, seen := p.names[w.text]; seen && there.name {
			if known != there.text {
				return place{}, false
			}
			continue
		}
		if !there.name {
			continue
		}
		if taken[there.text] { // one name for two
			return place{}, false
		}
		p.names[w.text], taken[there.text] = there.text, true
		if w.text == there.text {
			p.same++
		}
	}
	p.from, p.to = words[0].from, words[len(pattern)-1].to
	return p, true
}

// mayBeName reports whether text can be a name that may be another one.
func mayBeName(text string) bool {
	return token.IsIdentifier(text) && types.Universe.Lookup(text) == nil
}

// mutated is the source with the mutant's new text, in the names of the place.
func (p place) mutated(text string) []byte {
	var b strings.Builder
	last := 0
	for _, w := range wordsOf(text) {
		if name, ok := p.names[w.text]; ok {
			b.WriteString(text[last:w.from] + name)
			last = w.to
		}
	}
	b.WriteString(text[last:])
	return slices.Concat(p.source.text[:p.from], []byte(b.String()), p.source.text[p.to:])
}
