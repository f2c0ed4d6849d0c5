// Package redact has the one rule for what may be shown of a value that can hold a secret: of a URL nothing but scheme, host
// and port, of a command line nothing but the names of its flags.
package redact

import "strings"

// Hidden stands for what is not shown.
const Hidden = "xxxxx"

// URL returns scheme, hosts and ports of a URL. User, password, path, query and fragment can each hold a key, so none of
// them is shown. Where it is not certain what the host is, as with a password that has a slash, only the scheme is shown. A
// value that is no URL is hidden.
func URL(raw string) string {
	scheme, rest, found := strings.Cut(raw, "://")
	if !found || !wordOf(scheme, isLetter, "+.-") {
		return Hidden
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	hosts, behind := rest[:end], rest[end:]
	if strings.Contains(behind, "@") { // the password may have the slash
		return scheme + "://" + Hidden
	}
	hosts = hosts[strings.LastIndexByte(hosts, '@')+1:]
	for host := range strings.SplitSeq(hosts, ",") {
		if !isAddress(host) {
			return scheme + "://" + Hidden
		}
	}
	return scheme + "://" + hosts
}

// isAddress reports whether s can be a host, with or without a port: what is behind a colon and no number may be a password
// that lost its host.
func isAddress(s string) bool {
	host, port := s, ""
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, ']') {
		host, port = s[:i], s[i+1:]
	}
	return strings.Trim(port, "0123456789") == "" && !strings.ContainsFunc(host, func(r rune) bool { return !isHost(r) && !strings.ContainsRune(".-_%[]:", r) }) &&
		(strings.HasPrefix(host, "[") || !strings.Contains(host, ":"))
}

// Value returns a value for people to read: a URL as [URL] shows it, and what has the sign between user and host, or between
// a key and its value, hidden. Other values are returned as they are.
func Value(raw string) string {
	switch {
	case strings.Contains(raw, "://"):
		return URL(raw)
	case strings.ContainsAny(raw, "@="):
		return Hidden
	}
	return raw
}

// CommandLine returns the program's name and its arguments: the names of flags are shown, the value of every argument is
// hidden, because which of them are secret cannot be told from the line alone.
func CommandLine(args []string) []string {
	shown := make([]string, len(args))
	for i, arg := range args {
		name, _, valued := strings.Cut(arg, "=")
		switch {
		case i == 0:
			shown[i] = arg
		case strings.HasPrefix(arg, "--") && valued:
			shown[i] = name + "=" + Hidden
		case strings.HasPrefix(arg, "--"):
			shown[i] = arg
		default:
			shown[i] = Hidden
		}
	}
	return shown
}

func isLetter(r rune) bool { return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' }

func isHost(r rune) bool { return isLetter(r) || r >= '0' && r <= '9' || r > 127 }

// wordOf reports whether s is not empty and has only runes of the kind or of the others.
func wordOf(s string, kind func(rune) bool, others string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !kind(r) && !strings.ContainsRune(others, r) })
}
