package e2e

import (
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestFullDisk fills the disk of all data: the process is not ready, refuses orders,
// stops on time, and loses nothing.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	d := prepare(t, embedded)
	mountSmall(t, d.dir)
	d.start("")
	first := d.place(t, customer(1, ""))
	filler := filepath.Join(d.dir, "filler")
	fill(t, filler)
	d.awaitUnready(t, "no space left on device")
	eventually(t, paidLimit, func() string { // SQLite's log may have room for some more
		status, header, body := d.postRaw(t, strings.ReplaceAll(good, "ivan@", "full@"), "")
		if status == http.StatusServiceUnavailable && header.Get("Retry-After") != "" {
			return ""
		}
		return "on a full disk: " + http.StatusText(status) + " " + string(body)
	})
	p, began := d.process(""), time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	d.awaitEnd(t, p)
	if took := time.Since(began); took > promisedStop {
		t.Errorf("the stop took %v", took)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	d.start("")
	d.await(t, first.OrderID, "paid", settleLimit)
	d.await(t, d.place(t, customer(2, "")).OrderID, "paid", settleLimit)
	d.stop() // before its disk is unmounted
}

// mountSmall makes the folder a small file system of its own.
func mountSmall(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=700,size=48m")
	if errors.Is(err, syscall.EPERM) {
		t.Skip("only root can mount a small disk")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
}

// fill writes until no byte is free.
func fill(t *testing.T, file string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, rand.Reader); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
}
