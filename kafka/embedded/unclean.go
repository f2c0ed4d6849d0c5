package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// runningFile stands in the directory while a broker has it open, and holds the time up to which the data are
// known to be whole: when it was opened after a clean stop, or after one that all who produce have made up for.
const runningFile = "running"

// markRunning notes that the directory is open. It returns the last time at which it was whole, if it was not
// closed cleanly since.
func markRunning(dir string, now time.Time) (uncleanSince time.Time, err error) {
	path := filepath.Join(dir, runningFile)
	b, err := os.ReadFile(path)
	if err == nil {
		since, err := time.Parse(time.RFC3339Nano, string(b))
		if err != nil {
			since = time.Unix(0, 0).UTC() // nobody knows
		}
		return since, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, fmt.Errorf("look how it was closed: %w", err)
	}
	return time.Time{}, moveMark(dir, now)
}

// moveMark notes that the data are known to be whole up to another time.
func moveMark(dir string, at time.Time) error {
	if err := writeFrames(filepath.Join(dir, runningFile), [][]byte{[]byte(at.UTC().Format(time.RFC3339Nano))}); err != nil {
		return fmt.Errorf("note up to when it is whole: %w", err)
	}
	return nil
}

// markClosed notes that everything is written. Should that be lost, the next start is careful for nothing.
func markClosed(dir string) error {
	if err := os.Remove(filepath.Join(dir, runningFile)); err != nil {
		return fmt.Errorf("note that it is closed: %w", err)
	}
	return nil
}
