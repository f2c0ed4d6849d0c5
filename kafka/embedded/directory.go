package embedded

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"pizzaflow/internal/filelock"
)

// ErrDirectoryInUse is wrapped by the error of Start when another process has the directory open.
var ErrDirectoryInUse = filelock.ErrHeld

// lockDirectory takes dir for this process, until the lock is closed or the process ends.
func lockDirectory(dir string) (io.Closer, error) {
	if runtime.GOOS == "windows" { // where writeFrames cannot sync a folder
		return nil, errors.New("the embedded broker does not run on this operating system: use Apache Kafka")
	}
	lock, err := filelock.Acquire(filepath.Join(dir, "lock"))
	if errors.Is(err, ErrDirectoryInUse) {
		return nil, fmt.Errorf("%s: %w: stop it, or use another directory", dir, err)
	}
	return lock, err
}

// makePrivate creates dir with mode 0700, whatever the umask, and changes the mode of one that exists. The broker writes
// files that every user may read, and they hold names and addresses of customers; the directory keeps other users out.
func makePrivate(dir string) error {
	if dir == "" {
		return errors.New("no directory given")
	}
	if err := makeParents(dir); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", dir)
	}
	if info.Mode().Perm() == 0o700 {
		return nil
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("keep others out of the directory: %w", err)
	}
	return nil
}

// makeParents creates dir and its missing parents. Unlike os.MkdirAll it sets the mode of each before it goes on, since
// with an odd umask a parent could not be entered.
func makeParents(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := makeParents(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Chmod(dir, 0o700)
}

// repair prepares dir for the broker, which does not check the files that it reads: after a crash they may be torn.
func repair(dir string, log *slog.Logger) error {
	for _, name := range []string{"groups.log", "pids.log"} {
		if err := repairLog(filepath.Join(dir, name), log); err != nil {
			return fmt.Errorf("repair %s: %w", name, err)
		}
	}
	if err := setAside(dir, log); err != nil {
		return err
	}
	// The file has the members of groups at the last clean stop. Their connections are gone, as after a crash, and a
	// group that waits for them assigns no partitions until their sessions time out.
	err := os.Remove(filepath.Join(dir, "session_state.json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// setAside moves the files of partitions that no topic owns to another folder, as they are left when topics.json was
// lost or never written. A topic of that name, once created, would append to these files and then serve bytes from the
// wrong place.
func setAside(dir string, log *slog.Logger) error {
	entries, err := os.ReadDir(filepath.Join(dir, "partitions"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	owned, err := ownedPartitions(dir)
	if err != nil {
		return err
	}
	aside := filepath.Join(dir, "set-aside", time.Now().UTC().Format("20060102T150405.000000"))
	for _, e := range entries {
		if owned[e.Name()] {
			continue
		}
		if err := os.MkdirAll(aside, 0o700); err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(dir, "partitions", e.Name()), filepath.Join(aside, e.Name())); err != nil {
			return fmt.Errorf("set aside: %w", err)
		}
		log.Error("embedded broker: set aside the files of a partition without a topic", "partition", e.Name(), "directory", aside)
	}
	return nil
}

// ownedPartitions returns the names of the folders under partitions/ that belong to topics.
func ownedPartitions(dir string) (map[string]bool, error) {
	owned := make(map[string]bool)
	if _, err := os.Stat(filepath.Join(dir, "meta.json")); errors.Is(err, fs.ErrNotExist) {
		return owned, nil // without this file the broker takes the directory for an empty one
	}
	raw, err := os.ReadFile(filepath.Join(dir, "topics.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return owned, nil
	}
	if err != nil {
		return nil, err
	}
	var file struct {
		Topics []struct {
			Name       string `json:"name"`
			Partitions int    `json:"partitions"`
		} `json:"topics"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		return nil, fmt.Errorf("read %s: %w; restore the directory from a backup, or move it away to begin with an empty one",
			filepath.Join(dir, "topics.json"), err)
	}
	for _, t := range file.Topics {
		for p := range t.Partitions {
			owned[fmt.Sprintf("%s-%d", url.PathEscape(t.Name), p)] = true
		}
	}
	return owned, nil
}
