package main

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/alecthomas/kong"

	"pizzaflow"
)

// An optionReader reads the options of the configuration for kong, be they from flags, the environment or defaults. It keeps
// what cannot be read, so that all faults are told at once.
type optionReader struct {
	settings []pizzaflow.Setting
	faults   map[string]error // by option
	flags    map[string]bool  // the options whose flag was given
}

func newOptionReader(c *pizzaflow.Config) *optionReader {
	return &optionReader{settings: c.Settings(), faults: map[string]error{}, flags: map[string]bool{}}
}

// mappers are kong's options with which it leaves the reading to r.
func (r *optionReader) mappers() (all []kong.Option) {
	for _, s := range r.settings {
		m := optionMapper{setting: s, reader: r}
		if _, is := s.Field.(*bool); is {
			all = append(all, kong.ValueMapper(s.Field, switchMapper{m}))
		} else {
			all = append(all, kong.ValueMapper(s.Field, m))
		}
	}
	return all
}

// err joins the faults, in the order of the options.
func (r *optionReader) err() error {
	var errs []error
	for _, s := range r.settings {
		errs = append(errs, r.faults[s.Env])
	}
	return errors.Join(errs...)
}

// An optionMapper reads one option. Kong has flags read first, into a value of their own, and then the environment or the
// default into the field itself, although the flag's value takes its place in the end.
type optionMapper struct {
	setting pizzaflow.Setting
	reader  *optionReader
}

// Decode reads the next word of the command line, or what kong has from elsewhere.
func (m optionMapper) Decode(ctx *kong.DecodeContext, target reflect.Value) error {
	token, err := ctx.Scan.PopValue("value")
	if err != nil {
		return err
	}
	return m.read(fmt.Sprint(token.Value), target)
}

func (m optionMapper) read(text string, target reflect.Value) error {
	env, ofFlag := m.setting.Env, !target.CanAddr() || target.Addr().Interface() != m.setting.Field
	err := m.setting.Read(text, target)
	if ofFlag {
		m.reader.flags[env] = true
	}
	if err != nil && (ofFlag || !m.reader.flags[env]) {
		m.reader.faults[env] = err
	}
	return nil
}

// A switchMapper reads an option that is true when its flag has no value.
type switchMapper struct{ optionMapper }

// IsBool tells kong that the flag needs no value.
func (switchMapper) IsBool() bool { return true }

// Decode reads the value behind the sign of equality, if there is one.
func (m switchMapper) Decode(ctx *kong.DecodeContext, target reflect.Value) error {
	if ctx.Scan.Peek().Type != kong.FlagValueToken {
		return m.read("true", target)
	}
	return m.optionMapper.Decode(ctx, target)
}
