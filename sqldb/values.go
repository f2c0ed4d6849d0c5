package sqldb

import (
	"strconv"
	"strings"
)

// Values is the list of rows of a multi-row INSERT: "($1,$2),($3,$4)" for
// columns 2 and rows 2.
func Values(columns, rows int) string {
	var b strings.Builder
	for i := range columns * rows {
		switch {
		case i%columns != 0:
			b.WriteByte(',')
		case i > 0:
			b.WriteString("),(")
		default:
			b.WriteByte('(')
		}
		b.WriteByte('$')
		b.WriteString(strconv.Itoa(i + 1))
	}
	if rows > 0 {
		b.WriteByte(')')
	}
	return b.String()
}

// List is the inside of an IN (…) of n arguments, the first of which is $first.
func List(first, n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('$')
		b.WriteString(strconv.Itoa(first + i))
	}
	return b.String()
}

// Chunks calls fn with stretches of n items, each a power of two in length and
// at most limit, so that the statements made from them are few and stay
// prepared.
func Chunks(n, limit int, fn func(from, to int) error) error {
	for from := 0; from < n; {
		size := 1
		for size*2 <= min(n-from, limit) {
			size *= 2
		}
		if err := fn(from, from+size); err != nil {
			return err
		}
		from += size
	}
	return nil
}
