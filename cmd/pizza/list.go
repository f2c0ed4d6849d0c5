package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"
	"text/tabwriter"

	"pizzaflow"
)

type configCmd struct{}

// Run shows every option and says what is wrong with them.
func (configCmd) Run(p *program) error {
	err := show(p, p.cfg.Options(), "OPTION\tVALUE\tDEFAULT\tMEANING", func(o pizzaflow.Option) []any {
		return []any{o.Env, o.Value, o.Default, o.Help}
	})
	if err != nil {
		return err
	}
	return p.cfg.Validate()
}

type versionCmd struct{}

// Run shows what was built, from what, with what.
func (versionCmd) Run(p *program) error {
	type version struct {
		Version  string `json:"version"`
		Revision string `json:"revision,omitempty"`
		Go       string `json:"go"`
		Platform string `json:"platform"`
	}
	v := version{Version: "(devel)", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		if info.Main.Version != "" {
			v.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v.Revision = s.Value
			}
		}
	}
	if p.json {
		return json.NewEncoder(p.stdout).Encode(v)
	}
	_, err := fmt.Fprintf(p.stdout, "pizza %s %s %s %s\n", v.Version, v.Revision, v.Go, v.Platform)
	return err
}

// printJSON prints what -o json asks for.
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
