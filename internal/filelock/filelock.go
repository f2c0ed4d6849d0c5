// Package filelock keeps a second process away from a folder or a file: the lock of a file is held until it is closed or
// the process ends, however it ends.
package filelock

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/gofrs/flock"
)

// ErrHeld is wrapped by the error of a lock that another process holds.
var ErrHeld = errors.New("another process is using it")

// Acquire takes the lock of the file, which it creates, for this process. It does not wait: when another process holds the
// lock, the error wraps ErrHeld and tells that process's id, which stands in the file.
func Acquire(path string) (io.Closer, error) {
	lock := flock.New(path, flock.SetFlag(os.O_CREATE|os.O_RDWR))
	switch acquired, err := lock.TryLock(); {
	case err != nil:
		return nil, fmt.Errorf("lock %s: %w", path, err)
	case !acquired:
		holder, _ := os.ReadFile(path) // empty while the holder has not written it, and on Windows
		return nil, fmt.Errorf("%w (pid %s)", ErrHeld, strings.TrimSpace(string(holder)))
	}
	_ = os.WriteFile(path, fmt.Appendln(nil, os.Getpid()), 0o600) // the lock holds without it
	return lock, nil
}
