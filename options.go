package pizzaflow

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"pizzaflow/internal/redact"
)

// An Option is one option of the configuration with its value.
type Option struct {
	Env     string `json:"env"`
	Flag    string `json:"flag"`
	Value   string `json:"value"` // secrets are redacted
	Default string `json:"default"`
	Help    string `json:"help"`
}

// Options lists the options with their values, in their order.
func (c Config) Options() []Option {
	v := reflect.ValueOf(c)
	var out []Option
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		out = append(out, Option{tag.Get("env"), "--" + tag.Get("name"), shown(v.Field(i), tag), tag.Get("default"), tag.Get("help")})
	}
	return out
}

// shown is an option's value without what may be secret in it.
func shown(field reflect.Value, tag reflect.StructTag) string {
	if all, ok := reflect.TypeAssert[[]string](field); ok {
		visible := make([]string, len(all))
		for i, value := range all {
			visible[i] = redact.Value(value)
		}
		return strings.Join(visible, ",")
	}
	value := fmt.Sprint(field.Interface())
	file, isFile := strings.CutPrefix(value, "sqlite:")
	switch secret := tag.Get("secret"); {
	case value == "" || tag.Get("holds") == "mailbox":
		return value
	case secret == "url" && isFile:
		file, _, _ = strings.Cut(file, "?")
		return "sqlite:" + file
	case secret == "url":
		return redact.URL(value)
	case secret != "":
		return redact.Hidden
	}
	return redact.Value(value)
}

// A Setting is an option that can be set from text: the value of its flag or of its environment variable.
type Setting struct {
	Env   string
	Field any // points to the field of the Config

	tag reflect.StructTag
}

// Settings are the options of c.
func (c *Config) Settings() []Setting {
	v := reflect.ValueOf(c).Elem()
	var out []Setting
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		out = append(out, Setting{Env: tag.Get("env"), Field: v.Field(i).Addr().Interface(), tag: tag})
	}
	return out
}

// Read reads a text into target, which is of the option's type. Spaces around it do not count, and without anything else it
// is the default. A list is separated by commas, and its empty parts do not count. Words are accepted in any case. What cannot
// be read is an error that wraps ErrConfig, and leaves the default.
func (s Setting) Read(text string, target reflect.Value) error {
	standard := s.tag.Get("default")
	if text = strings.TrimSpace(text); text == "" {
		text = standard
	}
	if err := s.read(text, target); err != nil {
		_ = s.read(standard, target) // a default can be read
		return bad(s.Env, "%w", err)
	}
	return nil
}

func (s Setting) read(text string, target reflect.Value) error {
	if text == "" && target.Kind() != reflect.Slice {
		target.SetZero()
		return nil
	}
	switch target.Interface().(type) {
	case []string: // a flag that is given again adds to the list
		target.Set(reflect.AppendSlice(target, reflect.ValueOf(list(text))))
	case bool:
		value, known := truths[strings.ToLower(text)]
		if !known {
			return fmt.Errorf("%q is neither true nor false", redact.Value(text))
		}
		target.SetBool(value)
	case int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("%q is no whole number", redact.Value(text))
		}
		target.SetInt(int64(n))
	case time.Duration:
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%q is no duration such as 5s or 1h30m", redact.Value(text))
		}
		target.SetInt(int64(d))
	default:
		return s.readWords(text, target)
	}
	return nil
}

// readWords reads a text into target, each of its words as the option spells it.
func (s Setting) readWords(text string, target reflect.Value) error {
	if s.tag.Get("case") == "upper" {
		text = strings.ToUpper(text)
	}
	words := s.tag.Get("words")
	if words == "" {
		target.SetString(text)
		return nil
	}
	spelt := map[string]string{}
	for _, word := range list(words) {
		spelt[strings.ToLower(word)] = word
	}
	given := []string{text}
	if strings.Contains(s.tag.Get("default"), ",") {
		given = list(text)
	}
	for i, word := range given {
		known, ok := spelt[strings.ToLower(word)]
		if !ok {
			return fmt.Errorf("%q is not one of %s", redact.Value(word), strings.Join(list(words), ", "))
		}
		given[i] = known
	}
	target.SetString(strings.Join(given, ","))
	return nil
}

// truths are the words for true and false.
var truths = map[string]bool{
	"true": true, "yes": true, "on": true, "1": true, "t": true, "y": true,
	"false": false, "no": false, "off": false, "0": false, "f": false, "n": false,
}

// list is what stands between commas, without spaces around it and without what is empty.
func list(text string) []string {
	var out []string
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}
