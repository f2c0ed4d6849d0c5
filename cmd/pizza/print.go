package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// printJSON prints indented JSON.
func printJSON(p *program, v any) error {
	enc := json.NewEncoder(p.stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// show prints a list, as a table or as JSON.
func show[T any](p *program, list []T, header string, columns func(T) []any) error {
	if p.json {
		return printJSON(p, list)
	}
	w := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, header)
	for _, item := range list {
		for i, c := range columns(item) {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, c)
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// reportChange prints what was changed, or would be.
func (p *program) reportChange(c changeFlags, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if c.DryRun {
		text = "dry run: would have " + text
	}
	fmt.Fprintln(p.stderr, text)
}

// list prints the items, or the words for none.
func list[T any](p *program, items []T, nothing, header string, columns func(T) []any) error {
	if len(items) == 0 {
		fmt.Fprintln(p.stderr, nothing)
		if !p.json {
			return nil
		}
		items = []T{} // not null
	}
	return show(p, items, header, columns)
}

// sayMore names the services that have more than limit.
func (p *program) sayMore(services []string, limit int) {
	for _, s := range services {
		fmt.Fprintf(p.stderr, "%s has more than %d: see --limit\n", s, limit)
	}
}

// counted is a number with its noun: "1 record", "3 records".
func counted[N int | int64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprint(n, " ", noun, "s")
}

// printable makes a text from outside safe to print: on one line, and without control characters for the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

// formatTime prints a time to the second, and "-" for the zero time.
func formatTime(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}
