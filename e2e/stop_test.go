package e2e

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pizzaflow/sqldb"
)

// promisedStop is how long a stop may take, whatever is full, locked or silent.
const promisedStop = time.Minute

// TestRequestsAreTakenWhileItStops wants /readyz to say that the process stops before
// the first request is refused, so that a load balancer sends no more.
func TestRequestsAreTakenWhileItStops(t *testing.T) {
	t.Parallel()
	d := deploy(t, setup{engine: sqldb.SQLite}.with("STOP_GRACE=10s"))
	p := d.process("")
	signalled := time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, 8*time.Second, func() string {
		if why := p.ready(t.Context()); !strings.Contains(why, "503 not ready: stopping") {
			return "/readyz: " + why
		}
		return ""
	})
	o, err := d.post(t.Context(), customer(1, ""), "")
	if took := time.Since(signalled); err != nil && took < 9*time.Second {
		t.Fatalf("refused %v after SIGTERM: %v", took, err)
	}
	if err == nil {
		d.printOnFailure(o.OrderID)
	}
	select {
	case <-p.ended:
	case <-time.After(promisedStop):
		t.Fatalf("it has not ended %s after SIGTERM", promisedStop)
	}
	if code, took := p.cmd.ProcessState.ExitCode(), time.Since(signalled); code != 0 || took < 10*time.Second {
		t.Errorf("it ended with %d after %v, within its grace", code, took)
	}
	d.start("")
	if err == nil { // else the request came after the grace, on a slow machine
		d.await(t, o.OrderID, "paid", settleLimit)
	}
}

// TestStopWhileFilesAreLocked stops a process whose payments and messages in flight
// cannot be recorded: it logs which parts have not ended, and then it ends.
func TestStopWhileFilesAreLocked(t *testing.T) {
	t.Parallel()
	d := deploy(t, setup{engine: sqldb.SQLite, processes: []string{"order,payment,notification,frontend,broker", "sandbox"}})
	shop := d.process("order,payment,notification,frontend,broker")
	quiet := silentServer(t)
	d.sandbox.Lead(quiet) // so that calls are in flight at the stop
	d.smtp.Lead(quiet)
	for i := range 10 {
		d.place(t, customer(i, ""))
	}
	eventually(t, paidLimit, func() string {
		calls := d.value(t, "payment", `SELECT COUNT(*) FROM payments WHERE status = 'processing'`)
		sending := d.value(t, "notification", `SELECT COUNT(*) FROM notification_deliveries WHERE lease_token IS NOT NULL`)
		if calls == "0" || sending == "0" {
			return calls + " charges and " + sending + " messages are in flight"
		}
		return ""
	})
	unlocks := []func(){d.lockWrites(t, "payment", ""), d.lockWrites(t, "notification", ""), d.lockWrites(t, "order", "")}
	began := time.Now()
	if err := shop.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	d.awaitEnd(t, shop)
	took := time.Since(began)
	if took > promisedStop {
		t.Errorf("the stop took %v", took)
	}
	if code := shop.cmd.ProcessState.ExitCode(); code != 0 && !logsLeftovers(t, shop.log) {
		t.Errorf("it ended with %d after %v, and did not log which parts had not ended", code, took)
	}
	for _, unlock := range unlocks {
		unlock()
	}
	d.start(d.setup.processes...)
	d.awaitSettled(t, 10)
}

// TestStopWithASilentDatabase stops a process whose database does not answer any more.
func TestStopWithASilentDatabase(t *testing.T) {
	t.Parallel()
	d := deploy(t, setup{engine: sqldb.Postgres, behind: true})
	for i := range 10 {
		d.place(t, customer(i, ""))
	}
	d.db.Silence(true)
	d.awaitUnready(t, "did not answer in time")
	p, began := d.process(""), time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	d.awaitEnd(t, p)
	if took := time.Since(began); took > promisedStop {
		t.Errorf("the stop took %v", took)
	}
	d.db.EndSilence()
	d.start("")
	d.awaitSettled(t, 10)
}

// awaitEnd waits for the end of a process after SIGTERM, and kills it if that takes
// longer than promised.
func (d *deployment) awaitEnd(t *testing.T, p *process) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(promisedStop + 15*time.Second): // so that it can log which parts hang
		t.Errorf("it did not end within %v", promisedStop)
		p.kill()
	}
}

// logsLeftovers reports whether the log names the parts that had not ended.
func logsLeftovers(t *testing.T, file string) bool {
	t.Helper()
	return slices.ContainsFunc(logLines(t, file), func(l map[string]any) bool {
		what, _ := l["what"].(string)
		return l["msg"] == "not ended in time, and left behind" && what != ""
	})
}

// TestClosedTerminalAndLog closes the terminal, which is a stop like that by SIGTERM,
// and the pipe that reads the log, after which the process goes on.
func TestClosedTerminalAndLog(t *testing.T) {
	t.Parallel()
	t.Run("the terminal closes", func(t *testing.T) {
		t.Parallel()
		d := deploy(t, embedded)
		p := d.process("")
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		select {
		case <-p.ended:
		case <-time.After(promisedStop):
			t.Fatalf("it has not ended %s after SIGHUP", promisedStop)
		}
		logged := slices.ContainsFunc(logLines(t, p.log), func(l map[string]any) bool {
			because, _ := l["because"].(string)
			return l["msg"] == "stopping" && strings.Contains(because, "hangup")
		})
		if code := p.cmd.ProcessState.ExitCode(); code != 0 || !logged {
			t.Errorf("it ended with %d, and logged why: %v", code, logged)
		}
	})
	t.Run("the pipe of the log closes", func(t *testing.T) {
		t.Parallel()
		d := prepare(t, embedded)
		reader, writer, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		cmd := exec.Command(pizza)
		cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = filepath.Dir(d.dir), d.environment(""), out, writer, dieWithParent()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		writer.Close()
		reader.Close()
		p := &process{cmd: cmd, addresses: map[string]string{}}
		eventually(t, startLimit, func() string {
			printed, err := os.ReadFile(out.Name())
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(printed)) {
				key, address, _ := strings.Cut(strings.TrimSpace(line), "=")
				p.addresses[key] = address
			}
			return p.ready(t.Context())
		})
		if status, _, err := fetch(t.Context(), "http://"+p.addresses["HTTP_ADDR"]+"/"); err != nil || status != http.StatusOK { // and the process writes a line to its log
			t.Errorf("%d %v", status, err)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("it ended with %v", err)
			}
		case <-time.After(promisedStop):
			t.Errorf("it has not ended %s after SIGTERM", promisedStop)
			_ = cmd.Process.Kill()
		}
	})
}
