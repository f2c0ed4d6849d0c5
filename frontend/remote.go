package frontend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"pizzaflow/internal/retry"
	"pizzaflow/web"
)

const (
	dialTimeout   = 2 * time.Second
	readTry       = 3 * time.Second  // of one try to read at one address
	writeTry      = 8 * time.Second  // of one try to write at one address
	remoteTimeout = 20 * time.Second // of one request at all addresses
	restTime      = 5 * time.Second  // for which an address that did not answer is asked last
)

// errNotAnswered marks an answer that says that the address cannot serve now.
var errNotAnswered = errors.New("not answered")

// Remote returns the order API of processes elsewhere, which are all equal. A
// request goes to one address after the other until one answers; 502, 503 and 504
// are no answer as long as there is another address. An order that came without an
// Idempotency-Key is given one before the first try, so that what an address has
// taken without our hearing of it is not placed a second time by the next. When
// none answers, the answer is 503 with Retry-After.
//
// An address is http://host[:port] or https://host[:port]. Bodies have at most
// 64 KiB, answers 4 MiB. Redirects are passed on, not followed. The addresses are
// reached by dial, nil means the net package.
func Remote(urls []string, dial func(ctx context.Context, network, address string) (net.Conn, error), log *slog.Logger) (http.Handler, error) {
	if len(urls) == 0 {
		return nil, errors.New("order API: no address")
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext
	}
	m := &remote{log: log, client: &http.Client{
		Transport: &http.Transport{
			DialContext:           dial,
			TLSHandshakeTimeout:   dialTimeout,
			ResponseHeaderTimeout: writeTry,
			MaxIdleConnsPerHost:   64,
			IdleConnTimeout:       45 * time.Second, // less than the 60 s that the other side waits
			DisableCompression:    true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	for _, raw := range urls {
		u, err := url.Parse(strings.TrimSuffix(raw, "/"))
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.User != nil {
			return nil, fmt.Errorf("order API: %q is not of the form http://host:port", raw)
		}
		m.replicas = append(m.replicas, &replica{base: u})
	}
	return m, nil
}

type remote struct {
	client   *http.Client
	log      *slog.Logger
	replicas []*replica
	next     atomic.Uint64
}

// replica is one address.
type replica struct {
	base *url.URL
	rest atomic.Pointer[time.Time] // until when it is asked last, by the monotonic clock; nil when not
}

// ServeHTTP passes a request on.
func (m *remote) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, web.MaxBody))
	if err != nil {
		if _, tooLarge := errors.AsType[*http.MaxBytesError](err); !tooLarge {
			err = web.NewProblem(http.StatusBadRequest, "body-broken", "The body is incomplete", "The request's body could not be read to its end.").Because(err)
		}
		web.Error(w, r, m.log, err)
		return
	}
	header := r.Header.Clone()
	for _, name := range append(hopByHop(header), aboutUs...) {
		header.Del(name)
	}
	ownKey := r.Method == http.MethodPost && len(header.Values("Idempotency-Key")) == 0
	if ownKey {
		header.Set("Idempotency-Key", uuid.NewString())
	}
	ctx, cancel := context.WithTimeout(r.Context(), remoteTimeout)
	defer cancel()
	a, err := m.ask(ctx, r, header, body)
	for ownKey && err == nil && a.status == http.StatusConflict && retry.Sleep(ctx, busyWait) {
		a, err = m.ask(ctx, r, header, body) // our own first try is still being worked on
	}
	switch {
	case err == nil:
		a.copyTo(w, r)
	case errors.Is(r.Context().Err(), context.Canceled):
		web.Error(w, r, m.log, err) // the client left, or we are being stopped
	default:
		web.Error(w, r, m.log, web.Unavailable("The order service does not answer at the moment.").Because(err))
	}
}

// copyTo answers a request with what another process answered.
func (a *answer) copyTo(w http.ResponseWriter, r *http.Request) {
	for _, name := range hopByHop(a.header) {
		a.header.Del(name)
	}
	maps.Copy(w.Header(), a.header)
	if r.Method != http.MethodHead && a.status != http.StatusNoContent && a.status != http.StatusNotModified {
		w.Header().Set("Content-Length", strconv.Itoa(a.body.Len()))
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body.Bytes()) //nolint:gosec // the order API's own words; the only error is a client that is gone
}

// ask tries the addresses in turn. The last refusal is better than no answer.
func (m *remote) ask(ctx context.Context, r *http.Request, header http.Header, body []byte) (*answer, error) {
	var refused *answer
	var errs []error
	for _, to := range m.inTurn() {
		a, err := m.try(ctx, to, r, header, body)
		if err == nil {
			to.rest.Store(nil)
			return a, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", to.base, err))
		if errors.Is(r.Context().Err(), context.Canceled) {
			return nil, errors.Join(errs...) // that says nothing of the address
		}
		until := time.Now().Add(restTime)
		to.rest.Store(&until)
		if errors.Is(err, errNotAnswered) {
			refused = a
		}
		if ctx.Err() != nil {
			break
		}
	}
	if refused != nil {
		return refused, nil
	}
	return nil, errors.Join(errs...)
}

// inTurn is every address, beginning with another one each time; those that did
// not answer a moment ago come last.
func (m *remote) inTurn() []*replica {
	n := uint64(len(m.replicas))
	first := m.next.Add(1) % n
	all := append(slices.Clone(m.replicas[first:]), m.replicas[:first]...)
	now := time.Now()
	resting := func(r *replica) int {
		if until := r.rest.Load(); until != nil && now.Before(*until) {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(all, func(a, b *replica) int { return resting(a) - resting(b) })
	return all
}

// try asks one address and reads its whole answer: half of one is none.
func (m *remote) try(ctx context.Context, to *replica, r *http.Request, header http.Header, body []byte) (*answer, error) {
	limit := writeTry
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		limit = readTry
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	target := *to.base // whatever the request's URL is, only its path and query go there
	target.Path, target.RawPath, target.RawQuery = r.URL.Path, r.URL.RawPath, r.URL.RawQuery
	req, err := http.NewRequestWithContext(ctx, r.Method, target.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header = header.Clone()
	resp, err := m.client.Do(req) //nolint:gosec // the host is the operator's
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	a := &answer{status: resp.StatusCode, header: resp.Header}
	if _, err := a.body.ReadFrom(io.LimitReader(resp.Body, maxAnswer+1)); err != nil {
		return nil, err
	}
	if a.body.Len() > maxAnswer {
		return nil, errAnswerTooLarge
	}
	switch resp.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return a, fmt.Errorf("%w: status %d", errNotAnswered, resp.StatusCode)
	}
	return a, nil
}

// aboutUs are headers that a browser sends about the frontend's own address. What
// they protect from was checked there, and they mean nothing at another one.
var aboutUs = []string{"Cookie", "Origin", "Referer", "Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest"}

// hopByHop lists the headers that are about one connection only, and so not
// passed on.
func hopByHop(h http.Header) []string {
	names := []string{
		"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Accept-Encoding", "Expect",
	}
	for _, list := range h.Values("Connection") {
		for name := range strings.SplitSeq(list, ",") {
			names = append(names, strings.TrimSpace(name))
		}
	}
	return names
}
