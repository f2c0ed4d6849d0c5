package sqldb

import (
	"strconv"
	"strings"
)

// Values is the VALUES list of an INSERT of several rows: "($1,$2),($3,$4)" for
// 2 columns and 2 rows.
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

// List is a list of n arguments for an IN (…), the first of which is $first:
// "$2,$3" for first 2 and n 2.
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

// Chunks divides n items into ranges, each as long as a power of two and at most
// limit, so that there are few different statements for them, which stay prepared.
// It calls fn with each range and returns fn's first error.
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
