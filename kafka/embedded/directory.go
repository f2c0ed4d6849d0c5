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

// ErrDirectoryInUse says that another process has the embedded broker's directory open.
var ErrDirectoryInUse = filelock.ErrHeld

// lockDirectory takes dir for this process, until the lock is closed or the process ends.
func lockDirectory(dir string) (io.Closer, error) {
	if runtime.GOOS == "windows" { // there a folder cannot be synced, as mend does
		return nil, errors.New("the embedded broker does not run on this operating system: use Apache Kafka")
	}
	lock, err := filelock.Acquire(filepath.Join(dir, "lock"))
	if errors.Is(err, ErrDirectoryInUse) {
		return nil, fmt.Errorf("%s: %w: stop it, or use another directory", dir, err)
	}
	return lock, err
}

// makePrivate makes dir with mode 0700, whatever the umask, and narrows one that is there. The broker writes
// files that everybody may read, and they hold names and addresses; the directory keeps others out.
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

// makeParents makes dir and what is missing above it. Unlike os.MkdirAll it sets the mode afterwards, since
// an odd umask would lock us out half-way.
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

// mend prepares dir for being opened: it is what stands between a crash and a broker that reads its own files
// less carefully than it writes them.
func mend(dir string, log *slog.Logger) error {
	for _, name := range []string{"groups.log", "pids.log"} {
		if err := mendLog(filepath.Join(dir, name), log); err != nil {
			return fmt.Errorf("mend %s: %w", name, err)
		}
	}
	if err := setAside(dir, log); err != nil {
		return err
	}
	// Members of groups that were there at the last clean stop. They are gone with their connections, as
	// after a crash, and a group that is waiting for them assigns nothing until their session times out.
	err := os.Remove(filepath.Join(dir, "session_state.json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// setAside moves away the files of partitions that no topic owns, as they are left by a topics.json that was
// lost or never written. A topic of that name, once created, would append to them and then serve bytes from
// the wrong place.
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
		log.Error("set aside the records of a partition whose topic is unknown", "partition", e.Name(), "directory", aside)
	}
	return nil
}

// ownedPartitions returns the names of the directories under partitions/ that the broker will open.
func ownedPartitions(dir string) (map[string]bool, error) {
	owned := make(map[string]bool)
	if _, err := os.Stat(filepath.Join(dir, "meta.json")); errors.Is(err, fs.ErrNotExist) {
		return owned, nil // without it the broker takes the directory for an empty one
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
