package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"

	"pizzaflow"
)

type configCmd struct{}

// Run shows every option, and the faults of the configuration.
func (configCmd) Run(p *program) error {
	err := show(p, p.cfg.Options(), "OPTION\tVALUE\tDEFAULT\tMEANING", func(o pizzaflow.Option) []any {
		return []any{o.Env, o.Value, o.Default, o.Help}
	})
	if err != nil {
		return err
	}
	return errors.Join(p.validate(), p.cfg.CheckFiles())
}

type versionCmd struct{}

// Run shows version, revision, Go version and platform.
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
