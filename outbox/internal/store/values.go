package store

import (
	"context"
	"hash/fnv"
	"strings"
	"time"
	"unicode/utf8"

	"pizzaflow/sqldb"
)

// LongStatements gives statements time that may read or write all retained events.
func LongStatements(ctx context.Context) context.Context {
	return sqldb.WithStatementTimeout(ctx, 10*time.Minute)
}

// Reason is an error as it is stored and sent: one line of bounded length.
func Reason(err error) string {
	if err == nil {
		return ""
	}
	return Text(strings.ReplaceAll(err.Error(), "\n", "; "), 1000)
}

// Text is s as every database takes it: valid UTF-8 without NUL, and short.
func Text(s string, limit int) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	for len(s) > limit {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s
}

// KeyHash is the hash by which a key is found in an index; nil without a key.
func KeyHash(key []byte) any {
	if key == nil {
		return nil
	}
	return Hash(key)
}

// Hash is the FNV-1a hash of the parts, one after the other.
func Hash(parts ...[]byte) int64 {
	h := fnv.New64a()
	for _, part := range parts {
		h.Write(part) //nolint:gosec // a hash never fails
	}
	return int64(h.Sum64())
}

// NullBytes is b as an argument: nil is NULL, an empty slice is not.
func NullBytes(b []byte) any {
	if b == nil {
		return nil
	}
	return b
}
