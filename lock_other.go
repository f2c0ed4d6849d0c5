//go:build !unix

package pizzaflow

import (
	"io"
	"os"
	"path/filepath"
)

// lockFile opens the file; systems without flock have no lock to take.
func lockFile(path string) (io.Closer, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
}
