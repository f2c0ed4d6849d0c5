package filelock_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pizzaflow/internal/filelock"
)

func TestOneHolderAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	for range 2 {
		lock, err := filelock.Acquire(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := filelock.Acquire(path); !errors.Is(err, filelock.ErrHeld) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", os.Getpid())) {
			t.Errorf("the second: %v", err)
		}
		if err := lock.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNoFolderForTheLock(t *testing.T) {
	if _, err := filelock.Acquire(filepath.Join(t.TempDir(), "none", "lock")); !errors.Is(err, os.ErrNotExist) || errors.Is(err, filelock.ErrHeld) {
		t.Error(err)
	}
}
