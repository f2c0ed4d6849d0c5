//go:build synctests && !linux

package outbox_test

import "testing"

// memory is a folder for a run.
func memory(t *testing.T) string { return t.TempDir() }
