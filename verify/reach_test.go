package verify

import (
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// A broker that takes connections and says nothing costs the sandbox none of its
// time.
func TestSandboxIsReachedThoughNoBrokerAnswers(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	sandbox := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`[]`)) }))
	defer sandbox.Close()
	missing := map[string]string{}
	cfg := Config{Kafka: []kgo.Opt{kgo.SeedBrokers(silent.Addr().String()), kgo.DialTimeout(reachable + time.Second)}, Sandbox: sandbox.URL}
	cfg.reach(t.Context(), missing)
	if missing[needsTopics] == "" || missing[needsSandbox] != "" {
		t.Errorf("%q", missing)
	}
}
