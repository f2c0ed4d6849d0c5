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
	dialTimeout     = 2 * time.Second
	readTryTimeout  = 3 * time.Second  // of one GET or HEAD at one address
	writeTryTimeout = 8 * time.Second  // of one request of another method at one address
	remoteTimeout   = 20 * time.Second // of one request at all addresses
	cooldown        = 5 * time.Second  // how long an address that did not answer is tried last
)

// errUnavailable is the error of an answer 502, 503 or 504.
var errUnavailable = errors.New("unavailable")

// Remote returns a proxy to the order API of other processes, which are equal
// replicas. A request goes to one address after the other until one answers; 502,
// 503 and 504 are no answer as long as there is another address. An order without
// an Idempotency-Key is given one before the first try: if a replica stored the
// order and its answer was lost, the next replica does not store it again. When no
// replica answers, the proxy answers 503 with Retry-After.
//
// An address is http://host[:port] or https://host[:port]. A request body has at
// most 64 KiB, an answer 4 MiB. Redirects are passed on, not followed. dial opens
// the connections; nil means the net package.
//
// It is no httputil.ReverseProxy because an answer is read whole before it counts,
// and headers pass as TestRemoteKeepsHeadersAsTheyAre says.
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
			ResponseHeaderTimeout: writeTryTimeout,
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
	base      *url.URL
	coolUntil atomic.Pointer[time.Time] // the end of its cooldown, by the monotonic clock; nil without one
}

// ServeHTTP passes the request on and answers with what the replica answered.
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
	for _, name := range append(hopByHopHeaders(header), browserHeaders...) {
		header.Del(name)
	}
	ownKey := r.Method == http.MethodPost && len(header.Values("Idempotency-Key")) == 0
	if ownKey {
		header.Set("Idempotency-Key", uuid.NewString())
	}
	ctx, cancel := context.WithTimeout(r.Context(), remoteTimeout)
	defer cancel()
	a, err := m.sendToAny(ctx, r, header, body)
	for ownKey && err == nil && a.status == http.StatusConflict && retry.Sleep(ctx, busyWait) {
		a, err = m.sendToAny(ctx, r, header, body) // a replica still works on our first try
	}
	switch {
	case err == nil:
		a.copyTo(w, r)
	case errors.Is(r.Context().Err(), context.Canceled):
		web.Error(w, r, m.log, err) // the client left, or this process stops
	default:
		web.Error(w, r, m.log, web.Unavailable("The order service does not answer at the moment.").Because(err))
	}
}

// copyTo writes the answer of a replica to the client.
func (a *answer) copyTo(w http.ResponseWriter, r *http.Request) {
	for _, name := range hopByHopHeaders(a.header) {
		a.header.Del(name)
	}
	maps.Copy(w.Header(), a.header)
	if r.Method != http.MethodHead && a.status != http.StatusNoContent && a.status != http.StatusNotModified {
		w.Header().Set("Content-Length", strconv.Itoa(a.body.Len()))
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body.Bytes()) //nolint:gosec // the body is the order API's; the only error is a client that is gone
}

// sendToAny tries the addresses in turn and returns the first answer. When every
// address failed it returns the last 502, 503 or 504, if there was one.
func (m *remote) sendToAny(ctx context.Context, r *http.Request, header http.Header, body []byte) (*answer, error) {
	var refused *answer
	var errs []error
	for _, to := range m.replicasInTurn() {
		a, err := m.sendTo(ctx, to, r, header, body)
		if err == nil {
			to.coolUntil.Store(nil)
			return a, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", to.base, err))
		if errors.Is(r.Context().Err(), context.Canceled) {
			return nil, errors.Join(errs...) // the client left: the address is not at fault
		}
		until := time.Now().Add(cooldown)
		to.coolUntil.Store(&until)
		if errors.Is(err, errUnavailable) {
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

// replicasInTurn lists all replicas, each time beginning with the next one;
// replicas in their cooldown come last.
func (m *remote) replicasInTurn() []*replica {
	n := uint64(len(m.replicas))
	first := m.next.Add(1) % n
	all := append(slices.Clone(m.replicas[first:]), m.replicas[:first]...)
	now := time.Now()
	cooling := func(r *replica) int {
		if until := r.coolUntil.Load(); until != nil && now.Before(*until) {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(all, func(a, b *replica) int { return cooling(a) - cooling(b) })
	return all
}

// sendTo sends the request to one replica and reads its whole answer. An answer
// that breaks off is an error.
func (m *remote) sendTo(ctx context.Context, to *replica, r *http.Request, header http.Header, body []byte) (*answer, error) {
	limit := writeTryTimeout
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		limit = readTryTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	target := *to.base // only the path and the query of the request are passed on, never a host
	target.Path, target.RawPath, target.RawQuery = r.URL.Path, r.URL.RawPath, r.URL.RawQuery
	req, err := http.NewRequestWithContext(ctx, r.Method, target.String(), bytes.NewReader(body)) //nolint:gosec // the host is the operator's
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
		return a, fmt.Errorf("%w: status %d", errUnavailable, resp.StatusCode)
	}
	return a, nil
}

// browserHeaders are about the origin that the browser sees. The frontend has
// checked them; at the address of a replica they mean nothing.
var browserHeaders = []string{"Cookie", "Origin", "Referer", "Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest"}

// hopByHopHeaders lists the headers of h that are about one connection only and
// must not be passed on (RFC 9110, 7.6.1).
func hopByHopHeaders(h http.Header) []string {
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
