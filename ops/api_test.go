package ops

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"pizzaflow/internal/testkit"
	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// ask sends a request with the token to the handler.
func ask(t *testing.T, h http.Handler, path, body string) *httptest.ResponseRecorder {
	t.Helper()
	method := http.MethodGet
	if body != "" {
		method = http.MethodPost
	}
	r := httptest.NewRequestWithContext(t.Context(), method, "/api/v1/"+path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer a-token-for-the-tests")
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func apiForTests() *API {
	return NewAPI(APIConfig{
		Token: "a-token-for-the-tests", Databases: []Database{{Service: "payment", Runs: true}, {Service: "order"}}, Log: slog.New(slog.DiscardHandler),
	})
}

// Of several equal replays at once, one moves the record and the others find nothing to do.
func TestTwoReplaysAtOnce(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		_, err := db.ExecContext(t.Context(), `
			INSERT INTO parked_records (consumer, event_id, event_type, topic, partition, record_offset, key, value, headers, state, attempts, error_class, error, first_failed_at, last_failed_at)
			VALUES ('payment-service', '00000000-0000-4000-8000-000000000001', 'OrderCreated', 'order-events', 0, 0, $1, $1, '[]', 'dead', 3, 'transient', 'x', $2, $2)`, []byte("{}"), sqldb.Now())
		if err != nil {
			t.Fatal(err)
		}
		api := apiForTests()
		api.Add("payment", db)
		h := api.Handler()
		var both sync.WaitGroup
		affected := make(chan int, 8)
		for range cap(affected) {
			both.Go(func() {
				w := ask(t, h, "dead-letters/replay", `{"operator":"ann","class":"transient"}`)
				var answer struct{ Affected int }
				if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != http.StatusOK {
					t.Errorf("%d %s", w.Code, w.Body)
				}
				affected <- answer.Affected
			})
		}
		both.Wait()
		close(affected)
		total := 0
		for n := range affected {
			total += n
		}
		if total != 1 {
			t.Errorf("moved %d times", total)
		}
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}

// wantUnavailable wants 503 with Retry-After for every route.
func wantUnavailable(t *testing.T, h http.Handler) {
	t.Helper()
	for path, body := range map[string]string{
		"outbox": "", "outbox/blocked": "", "dead-letters": "", "dead-letters/payment/00000000-0000-4000-8000-000000000001": "",
		"dead-letters/replay": `{"operator":"ann","all":true}`, "outbox/republish": `{"operator":"ann","since":"2020-01-01T00:00:00Z"}`,
	} {
		if w := ask(t, h, path, body); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

func TestOperatorAPIBeforeTheDatabaseIsOpen(t *testing.T) {
	wantUnavailable(t, apiForTests().Handler())
}

// While the database server is away the API says so, and it works again once the server is back.
func TestOperatorAPIWithoutItsDatabase(t *testing.T) {
	direct := sqltest.URL(t, sqldb.Postgres)
	sqltest.Connect(t, direct, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
	way, through := testkit.NewURLProxy(t, direct)
	api := apiForTests()
	api.Add("payment", sqltest.Connect(t, through))
	h := api.Handler()
	if w := ask(t, h, "dead-letters", ""); w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	way.Cut()
	wantUnavailable(t, h)
	way.Restore()
	if w := ask(t, h, "dead-letters", ""); w.Code != http.StatusOK {
		t.Errorf("back again: %d %s", w.Code, w.Body)
	}
}
