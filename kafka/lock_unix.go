//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package kafka

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// lockDirectory takes dir for this process. Closing the file, or dying, gives it back.
func lockDirectory(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		owner, _ := os.ReadFile(path) // only to say who: it may be empty
		_ = f.Close()
		return nil, fmt.Errorf("%s: %w (pid %s): stop it, or use another directory", dir, ErrDirectoryInUse, strings.TrimSpace(string(owner)))
	}
	if err == nil {
		err = errors.Join(f.Truncate(0), writeOwner(f))
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

func writeOwner(f *os.File) error {
	_, err := fmt.Fprintln(f, os.Getpid())
	return err
}
