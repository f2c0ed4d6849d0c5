package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	startLimit = 2 * time.Minute // long, because other packages may be built and tested at the same time
	stopLimit  = 30 * time.Second
)

// A process is one running pizza.
type process struct {
	services string // the value of SERVICES, "" for the default
	cmd      *exec.Cmd
	log      string        // the file of its standard error
	ended    chan struct{} // closed at the end of the process

	mu        sync.Mutex
	addresses map[string]string // that it printed, by key
}

// launch starts a binary with this environment and no other variables.
func launch(t *testing.T, binary, services string, env []string, dir, log string) *process {
	t.Helper()
	stderr, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	p := &process{services: services, log: log, ended: make(chan struct{}), addresses: map[string]string{}}
	p.cmd = exec.Command(binary)
	p.cmd.Dir, p.cmd.Env, p.cmd.Stderr, p.cmd.SysProcAttr = dir, env, stderr, dieWithParent()
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			if key, address, ok := strings.Cut(lines.Text(), "="); ok {
				p.mu.Lock()
				p.addresses[key] = address
				p.mu.Unlock()
			}
		}
		_ = p.cmd.Wait() // ProcessState has the exit code
		close(p.ended)
	}()
	return p
}

// address is the address that the process printed for the key, "" before.
func (p *process) address(key string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addresses[key]
}

func (p *process) alive() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// ready returns "" when the process is ready, and else why it is not.
func (p *process) ready(ctx context.Context) string {
	if p.services == "sandbox" { // which has no ADMIN_ADDR
		for _, key := range []string{"SANDBOX_ADDR", "SANDBOX_SMTP_ADDR"} {
			if p.address(key) == "" {
				return "no " + key
			}
		}
		return ""
	}
	admin := p.address("ADMIN_ADDR")
	if admin == "" {
		return "no ADMIN_ADDR"
	}
	status, body, err := fetch(ctx, "http://"+admin+"/readyz")
	if err != nil {
		return err.Error()
	}
	if status != http.StatusOK {
		return fmt.Sprintf("/readyz: %d %s", status, body)
	}
	return ""
}

// kill ends the process with SIGKILL and waits for its end.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended already
	<-p.ended
}

// stop sends SIGTERM and waits for the end of the process. It returns what went wrong,
// or "".
func (p *process) stop() string {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(stopLimit):
		_ = p.cmd.Process.Signal(syscall.SIGQUIT) // which writes its goroutines to the log
		select {
		case <-p.ended:
		case <-time.After(5 * time.Second):
			p.kill()
		}
		return fmt.Sprintf("did not end within %s of SIGTERM", stopLimit)
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Sprintf("ended with %s after SIGTERM", p.cmd.ProcessState)
	}
	return ""
}

// logLines are the JSON lines of a log file.
func logLines(t *testing.T, file string) []map[string]any {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var lines []map[string]any
	for line := range strings.Lines(string(raw)) {
		var fields map[string]any
		if strings.HasPrefix(line, "{") && json.Unmarshal([]byte(line), &fields) == nil {
			lines = append(lines, fields)
		}
	}
	return lines
}

// lastWarnings are the last lines of a log above level INFO.
func lastWarnings(file string) string {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	var out []string
	for line := range strings.Lines(string(raw)) {
		if !strings.Contains(line, `"level":"INFO"`) && strings.TrimSpace(line) != "" {
			out = append(out, line)
		}
	}
	if over := len(out) - 60; over > 0 {
		out = append([]string{fmt.Sprintf("… %d lines before\n", over)}, out[over:]...)
	}
	return filepath.Base(file) + ":\n" + strings.Join(out, "")
}

// fetch gets a URL and returns status and body.
func fetch(ctx context.Context, url string) (status int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, err
	}
	status, _, body, err = send(req)
	return status, body, err
}
