package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// childDir is the environment variable with the folder of a sandbox that this binary
// runs as a process of its own, which the test kills.
const childDir = "PIZZA_SANDBOX_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := runChild(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// runChild serves until it is killed, and prints its addresses.
func runChild(dir string) error {
	s, err := Open(Config{Dir: dir})
	if err != nil {
		return err
	}
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mail, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(web.Addr(), mail.Addr())
	return s.Run(context.Background(), web, mail)
}

// world is a sandbox that serves on real sockets.
type world struct {
	t       *testing.T
	dir     string
	url     string
	mail    string
	sandbox *Sandbox
	stop    func() error // ends Run and returns what it returned
}

func start(t *testing.T, dir string) *world {
	t.Helper()
	s, err := Open(Config{Dir: dir, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	web, mail := listen(t), listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, web, mail) }()
	stop := sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return &world{t: t, dir: dir, url: "http://" + web.Addr().String(), mail: mail.Addr().String(), sandbox: s, stop: stop}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// client opens a connection for each request: on a reused connection, net/http itself
// repeats a request with an Idempotency-Key that got no answer.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}

// send makes a request and returns status and body; status 0 if there is no answer.
func (w *world) send(ctx context.Context, method, path, key, body string) (int, []byte) {
	w.t.Helper()
	status, answer, err := exchangeHTTP(ctx, w.url, method, path, key, body)
	if err != nil && !isCut(err) && ctx.Err() == nil {
		w.t.Errorf("%s %s: %v", method, path, err)
	}
	return status, answer
}

func exchangeHTTP(ctx context.Context, url, method, path, key, body string) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	answer, err := io.ReadAll(res.Body)
	return res.StatusCode, answer, errors.Join(err, res.Body.Close())
}

func isCut(err error) bool {
	var op *net.OpError
	return errors.Is(err, io.EOF) || errors.As(err, &op)
}

func (w *world) post(path, key, body string) (int, []byte) {
	w.t.Helper()
	return w.send(w.t.Context(), http.MethodPost, path, key, body)
}

// get fetches and decodes a list or an object.
func get[T any](w *world, path string) T {
	w.t.Helper()
	status, body := w.send(w.t.Context(), http.MethodGet, path, "", "")
	if status != http.StatusOK {
		w.t.Fatalf("GET %s: %d %s", path, status, body)
	}
	return decodeAs[T](w.t, body)
}

func decodeAs[T any](t *testing.T, body []byte) T {
	t.Helper()
	var v T
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	return v
}

// eventually polls a condition.
func eventually(t *testing.T, what string, ask func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(30 * time.Second)
	for !ask() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("never: %s", what)
		}
	}
}

func chargeBody(email, order string) string {
	return fmt.Sprintf(`{"amount":120000,"currency":"RUB","customer_email":%q,"order_reference":%q}`, email, order)
}

func TestFolderIsPrivate(t *testing.T) {
	w := start(t, filepath.Join(t.TempDir(), "deep", "sandbox"))
	info, err := os.Stat(w.dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder: %v %v", info.Mode(), err)
	}
	for _, name := range []string{"payments.jsonl", "mail.jsonl", "sms.jsonl"} {
		info, err := os.Stat(filepath.Join(w.dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
}

func TestStopReleasesWhatHangs(t *testing.T) {
	w := start(t, t.TempDir())
	var hanging sync.WaitGroup
	for _, tag := range []string{"timeout", "hang", "late"} {
		hanging.Go(func() {
			if status, body := w.post("/payments/charges", tag, chargeBody("a+"+tag+"@example.com", tag)); status != 0 {
				t.Errorf("+%s was answered: %d %s", tag, status, body)
			}
		})
	}
	idle, err := net.Dial("tcp", w.mail)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	greeting := make([]byte, 512)
	if n, err := idle.Read(greeting); err != nil || !strings.HasPrefix(string(greeting[:n]), "220 ") {
		t.Fatalf("greeting %q %v", greeting[:n], err)
	}
	eventually(t, "three requests arrive", func() bool {
		return len(get[[]loggedRequest](w, "/payments/requests")) == 3
	})
	begun := time.Now()
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took > drainTime-time.Second {
		t.Errorf("nothing was being answered, and yet it took %v to stop", took)
	}
	hanging.Wait()
	if goodbye, err := io.ReadAll(idle); err != nil || !strings.HasPrefix(string(goodbye), "421 ") {
		t.Errorf("goodbye %q %v", goodbye, err)
	}
}

func TestUnknownPathsAndMethods(t *testing.T) {
	w := start(t, t.TempDir())
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/nothing", 404},
		{"DELETE", "/payments/charges", 405},
		{"GET", "/payments/refunds", 405},
		{"POST", "/mail/messages", 405},
		{"POST", "/", 405},
		{"GET", "/mail/messages/7/html", 404},
	} {
		status, body := w.send(t.Context(), c.method, c.path, "", "")
		if status != c.status || decodeAs[apiError](t, body).Code == "" {
			t.Errorf("%s %s: %d %s", c.method, c.path, status, body)
		}
	}
}

// TestKilled kills a sandbox in the middle of its work: after a restart, each effect
// that it had acknowledged must be there once.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(exe)
	child.Env = append(os.Environ(), childDir+"="+dir)
	child.Stderr = t.Output()
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var web, smtp string
	if _, err := fmt.Fscan(out, &web, &smtp); err != nil {
		t.Fatal(err)
	}
	charged, texted, mailed := hammer(t, "http://"+web, smtp, func() {
		if err := child.Process.Kill(); err != nil {
			t.Error(err)
		}
	})
	if err := child.Wait(); err == nil {
		t.Error("the child was not killed")
	}

	w := start(t, dir)
	t.Logf("acknowledged: %d charges, %d SMS, %d mails", len(charged), len(texted), len(mailed))
	ids := map[string]int{}
	for _, c := range get[[]charge](w, "/payments/charges") {
		ids[c.ID]++
	}
	for _, m := range get[[]sms](w, "/sms/messages") {
		ids[m.ID]++
	}
	for _, m := range get[[]mail](w, "/mail/messages") {
		ids[m.MessageID]++
	}
	for _, list := range [][]string{charged, texted, mailed} {
		if len(list) < 10 {
			t.Errorf("only %d acknowledged", len(list))
		}
		for _, id := range list {
			if ids[id] != 1 {
				t.Errorf("%s is there %d times", id, ids[id])
			}
		}
	}
	answered := map[int]int{}
	for _, r := range get[[]loggedRequest](w, "/payments/requests") {
		if r.Method == http.MethodPost {
			answered[r.Status]++
		}
	}
	if answered[http.StatusCreated] < len(charged) {
		t.Errorf("request log: %v for %d acknowledged", answered, len(charged))
	}
}

// hammer sends charges, SMS and mails at once, kills the sandbox after a while, and
// returns the ids of the effects that were acknowledged.
func hammer(t *testing.T, url, smtp string, kill func()) (charged, texted, mailed []string) {
	var mu sync.Mutex
	var workers sync.WaitGroup
	work := func(acknowledged *[]string, do func(n int) (string, error)) {
		workers.Go(func() {
			for n := 0; ; n++ {
				id, err := do(n)
				if err != nil {
					return // killed
				}
				mu.Lock()
				*acknowledged = append(*acknowledged, id)
				mu.Unlock()
			}
		})
	}
	for worker := range 4 {
		work(&charged, func(n int) (string, error) {
			order := fmt.Sprintf("order-%d-%d", worker, n)
			return acknowledged(t, url, "/payments/charges", "key-"+order, chargeBody("ivan@example.com", order), 201)
		})
		work(&texted, func(n int) (string, error) {
			return acknowledged(t, url, "/sms/messages", "", `{"to":"+79001234567","text":"Пицца едет","reference":"r"}`, 202)
		})
		work(&mailed, func(n int) (string, error) {
			id := fmt.Sprintf("mail-%d-%d@example.com", worker, n)
			return id, sendMail(smtp, "ivan@example.com", "Message-ID: <"+id+">\r\nSubject: hi\r\n\r\nhi\r\n")
		})
	}
	eventually(t, "some work is done", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(charged) > 60 && len(texted) > 60 && len(mailed) > 60
	})
	kill()
	workers.Wait()
	return charged, texted, mailed
}

func acknowledged(t *testing.T, url, path, key, body string, want int) (string, error) {
	status, answer, err := exchangeHTTP(t.Context(), url, http.MethodPost, path, key, body)
	if err != nil {
		return "", err
	}
	if status != want {
		t.Errorf("%s: %d %s", path, status, answer)
	}
	var v struct {
		ID string `json:"id"`
	}
	err = json.Unmarshal(answer, &v)
	return v.ID, err
}

// serve runs a request through the handler without a network, for virtual time;
// status 0 if the connection was cut.
func serve(s *Sandbox, r *http.Request) (status int, body []byte) {
	rec := httptest.NewRecorder()
	defer func() {
		if cut := recover(); cut != nil {
			if err, ok := cut.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
				panic(cut)
			}
			status, body = 0, nil
		}
	}()
	s.Handler().ServeHTTP(rec, r)
	return rec.Code, rec.Body.Bytes()
}
