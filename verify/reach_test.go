package verify

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// A broker that does not answer costs the sandbox none of its time.
func TestSandboxIsReachedThoughNoBrokerAnswers(t *testing.T) {
	silence := func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	sandbox := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`[]`)) }))
	defer sandbox.Close()
	cfg := Config{Kafka: []kgo.Opt{kgo.SeedBrokers("127.0.0.1:1"), kgo.Dialer(silence)}, Sandbox: sandbox.URL}
	missing, _ := cfg.reach(t.Context())
	if missing[needsTopics] == "" || missing[needsDeadLetters] == "" || missing[needsSandbox] != "" {
		t.Errorf("%q", missing)
	}
}
