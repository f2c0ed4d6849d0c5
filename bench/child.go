package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A role is what this program does in a process of its own. It reads its
// order, says once that it is ready, and returns when ctx ends or it is done;
// what it returns is its result.
type role func(ctx context.Context, order json.RawMessage, ready func(any) error) (any, error)

func roles() map[string]role {
	return map[string]role{
		"broker":     playBroker,
		"ours":       playOurs,
		"literal":    playLiteral,
		"skiplocked": playSkipLocked,
		"watermill":  playWatermill,
		"writer":     playWriter,
		"intake":     playIntake,
		"consumer":   playConsumer,
		"chain":      playChain,
	}
}

// play runs a role: its name and its order are the arguments. It ends, too,
// when whoever started it is gone and its standard input with him.
func play(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	if len(args) != 2 || roles()[args[0]] == nil {
		return fmt.Errorf("role wants a name and an order, not %q", args)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, in) // its end is all it has to tell
		cancel()
	}()
	enc := json.NewEncoder(out)
	result, err := roles()[args[0]](ctx, json.RawMessage(args[1]), func(v any) error { return enc.Encode(v) })
	if err != nil {
		return fmt.Errorf("role %s: %w", args[0], err)
	}
	return enc.Encode(result)
}

// A child is a running process: one of our roles, or another program.
type child struct {
	name  string
	cmd   *exec.Cmd
	in    io.Closer
	out   *bufio.Reader
	errs  string // the file with what it said on stderr
	ended bool
}

// usage is what a process has used in its whole life.
type usage struct {
	cpu  time.Duration // user and system
	peak int64         // bytes resident
}

// role starts this program again in a role.
func (b *bench) role(ctx context.Context, name string, order any) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	text, err := json.Marshal(order)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return b.start(ctx, name, exec.CommandContext(ctx, self, "role", name, string(text))) //nolint:gosec // it is this program
}

// start starts a process that is told to end when ctx does.
func (b *bench) start(ctx context.Context, name string, cmd *exec.Cmd) (*child, error) {
	c := &child{name: name, cmd: cmd}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 15 * time.Second // then it is killed
	cmd.SysProcAttr = dieWithParent()
	errs, err := os.CreateTemp(b.dir, name+"-*.log")
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer func() { _ = errs.Close() }() // the process has its own
	c.errs, cmd.Stderr = errs.Name(), errs
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	c.in, c.out = in, bufio.NewReaderSize(out, 1<<20)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return c, ctx.Err()
}

// read takes the next line that the role has printed.
func (c *child) read(into any) error {
	line, err := c.out.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, into)
	}
	if err != nil {
		return c.failed(err)
	}
	return nil
}

// failed explains an error by what the process said last.
func (c *child) failed(err error) error {
	said, e := os.ReadFile(c.errs)
	if e != nil {
		return fmt.Errorf("%s: %w", c.name, errors.Join(err, e))
	}
	lines := strings.Split(strings.TrimSpace(string(said)), "\n")
	return fmt.Errorf("%s: %w; it said last: %s (%s)", c.name, err, strings.Join(lines[max(0, len(lines)-3):], " | "), filepath.Base(c.errs))
}

// stop ends the process and tells what it has used. Only the first call does.
func (c *child) stop() (usage, error) {
	if c.ended {
		return usage{}, nil
	}
	c.ended = true
	// The peak is read while it lives: what the kernel reports afterwards counts
	// the memory that this process shared with it when it was forked, too.
	peak, err := peakMemory(c.cmd.Process.Pid)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%s: %w", c.name, err)
	} else {
		err = nil
	}
	if e := c.cmd.Process.Signal(syscall.SIGTERM); e != nil && !errors.Is(e, os.ErrProcessDone) {
		err = errors.Join(err, e)
	}
	_ = c.in.Close() // it may be gone
	kill := time.AfterFunc(15*time.Second, func() { _ = c.cmd.Process.Kill() })
	defer kill.Stop()
	_, _ = io.Copy(io.Discard, c.out) // until it closes its side
	e := c.cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](e); ok && !ended(exit.ProcessState) {
		err = errors.Join(err, c.failed(e))
	}
	s := c.cmd.ProcessState
	return usage{cpu: s.UserTime() + s.SystemTime(), peak: peak}, err
}

// ended tells whether a process that we told to end has done so in good order:
// Java answers SIGTERM with 143.
func ended(s *os.ProcessState) bool {
	status, ok := s.Sys().(syscall.WaitStatus)
	return s.ExitCode() == 143 || ok && status.Signaled() && status.Signal() == syscall.SIGTERM
}
