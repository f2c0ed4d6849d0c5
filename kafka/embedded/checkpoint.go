package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// checkpointFile is in the directory while a broker has it open. It holds the time up to which the data are known to be
// complete: at first when the directory was opened, if that was after a clean stop.
const checkpointFile = "running"

// openCheckpoint creates the file. If it exists already, the last stop was not a clean one, and openCheckpoint returns the
// time in it.
func openCheckpoint(dir string, now time.Time) (uncleanSince time.Time, err error) {
	path := filepath.Join(dir, checkpointFile)
	b, err := os.ReadFile(path)
	if err == nil {
		since, err := time.Parse(time.RFC3339Nano, string(b))
		if err != nil {
			since = time.Unix(0, 0).UTC() // unknown
		}
		return since, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, fmt.Errorf("read the checkpoint: %w", err)
	}
	return time.Time{}, writeCheckpoint(dir, now)
}

// writeCheckpoint replaces the time up to which the data are complete.
func writeCheckpoint(dir string, at time.Time) error {
	if err := writeFrames(filepath.Join(dir, checkpointFile), [][]byte{[]byte(at.UTC().Format(time.RFC3339Nano))}); err != nil {
		return fmt.Errorf("write the checkpoint: %w", err)
	}
	return nil
}

// removeCheckpoint records a clean stop. If the removal is lost in a crash, the next start takes the stop for an unclean
// one, which does no harm.
func removeCheckpoint(dir string) error {
	if err := os.Remove(filepath.Join(dir, checkpointFile)); err != nil {
		return fmt.Errorf("remove the checkpoint: %w", err)
	}
	return nil
}
