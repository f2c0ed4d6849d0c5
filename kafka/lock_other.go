//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package kafka

import (
	"errors"
	"os"
)

// lockDirectory refuses: without it two processes could write into one log.
func lockDirectory(string) (*os.File, error) {
	return nil, errors.New("the embedded broker does not run on this operating system: use Apache Kafka")
}
