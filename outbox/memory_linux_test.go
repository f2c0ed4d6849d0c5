//go:build synctests

package outbox_test

import (
	"os"
	"syscall"
	"testing"
)

// memory is a folder for a run, where syncing costs nothing if the machine has
// such a place: what survives a power cut is not the question here. A container
// often has a small one, and SQLite maps files, so a full one ends the process.
func memory(t *testing.T) string {
	const place, enough = "/dev/shm", 1 << 30
	var fs syscall.Statfs_t
	if err := syscall.Statfs(place, &fs); err != nil || fs.Bavail*uint64(fs.Bsize) < enough {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(place, "pizzaflow-simulation-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}
