package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"pizzaflow/load"
)

// address finds the address that a running pizza printed for an option.
type address struct {
	key     string
	printed chan string

	mu   sync.Mutex
	text bytes.Buffer
}

func (a *address) Write(b []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.find()
	n, err := a.text.Write(b)
	if found := a.find(); before == "" && found != "" {
		a.printed <- found
	}
	return n, err
}

func (a *address) find() string {
	for line := range strings.Lines(a.text.String()) {
		if value, ok := strings.CutPrefix(line, a.key+"="); ok && strings.HasSuffix(value, "\n") {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func TestLoad(t *testing.T) {
	cleanEnvironment(t, map[string]string{"LOG_LEVEL": "error"})
	ctx, stop := context.WithCancel(t.Context())
	shop := &address{key: "HTTP_ADDR", printed: make(chan string, 1)}
	ended := make(chan int, 1)
	var talk bytes.Buffer
	go func() { ended <- run(ctx, nil, shop, &talk) }()
	defer func() {
		stop()
		if code := <-ended; code != exitDone {
			t.Errorf("the system ended with %d: %s", code, &talk)
		}
	}()
	args := []string{"load", "--url", "http://" + <-shop.printed, "--rate", "100", "--orders", "50", "--declined", "10", "--follow", "--log", "promised"}
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), append(args, "-o", "json"), &stdout, &stderr); code != exitDone {
		t.Fatalf("exit %d\n%s\n%s", code, &stdout, &stderr)
	}
	var report load.Report
	if err := json.Unmarshal(stdout.Bytes(), &report); err != nil {
		t.Fatalf("%v: %s", err, &stdout)
	}
	if report.Placed != 50 || report.Followed == nil || report.Followed.Paid != 45 || report.Followed.PaymentFailed != 5 ||
		report.Latency.P50 <= 0 || report.Followed.Latency.Max <= 0 || report.Rate <= 0 || report.Rate > 100 {
		t.Errorf("%+v %+v", report, report.Followed)
	}
	file, err := os.Open("promised")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	kinds := map[string]int{}
	if err := load.ReadLog(file, func(l load.Line) error { kinds[l.Kind]++; return nil }); err != nil || kinds[load.KindAttempt] != 50 || kinds[load.KindPlaced] != 50 {
		t.Errorf("%v: %v", err, kinds)
	}
	stderr.Reset()
	if code := run(t.Context(), args, &stdout, &stderr); code != exitFailed || !strings.Contains(stderr.String(), "file exists") {
		t.Errorf("exit %d: %s; the log of another run was taken", code, &stderr)
	}
}

func TestLoadSaysWhatWentWrong(t *testing.T) {
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			w.WriteHeader(http.StatusUnprocessableEntity)
			return
		}
		_, _ = w.Write([]byte(`{"pizzas":[{"id":"p","available":true,"prices":{"small":1.00}}]}`))
	}))
	defer refusing.Close()
	code, stdout, stderr := pizza(t, nil, "load", "--url", refusing.URL, "--rate", "1000", "--orders", "3")
	if code != exitFailed || !strings.Contains(stderr, "of 3 orders: 3 refused") || !strings.Contains(stdout, "REFUSED") || !strings.Contains(stdout, "422") {
		t.Errorf("exit %d\n%s\n%s", code, stdout, stderr)
	}
	gone := httptest.NewServer(http.NotFoundHandler())
	defer gone.Close()
	code, _, stderr = pizza(t, nil, "load", "--url", gone.URL, "--log", "promised")
	if _, err := os.Stat("promised"); code != exitFailed || !strings.Contains(stderr, "read menu") || !os.IsNotExist(err) {
		t.Errorf("exit %d: %s; its empty log: %v", code, stderr, err)
	}
}

func TestLoadUsage(t *testing.T) {
	for _, arg := range []string{
		"--url=ftp://shop", "--url=http://", "--url=shop:8080", "--url=http://shop?a=b", "--rate=0", "--rate=-1", "--rate=NaN", "--rate=fast", "--duration=0s",
		"--duration=soon", "--duration=9000000h", "--orders=-1", "--orders=100000001", "--declined=101", "--declined=NaN", "--in-flight=0",
		"--patience=0s", "--timeout=0s", "--follow-for=-1s",
	} {
		flag, _, _ := strings.Cut(arg, "=")
		if code, stdout, stderr := pizza(t, nil, "load", arg); code != exitUsage || !strings.Contains(stderr, flag) || stdout != "" {
			t.Errorf("%s: exit %d, want %d and the flag named: %s", arg, code, exitUsage, stderr)
		}
	}
}
