package frontend

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
)

// maxStreams is the limit of open trackers in one process.
const maxStreams = 10_000

// Config configures a [Service].
type Config struct {
	// API serves /api/v1/…, /openapi.json, /docs/ and /asyncapi.yaml: the order
	// service of this process, or a [Remote].
	API http.Handler
	// Kafka are the options of the client that reads the topics.
	Kafka []kgo.Opt
	// PublicURL is the shop's address for customers. If it is https, the language
	// cookie is sent over https only.
	PublicURL string
	// Log may be nil.
	Log *slog.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
}

// A Service serves the shop. Any number of replicas may run.
type Service struct {
	api    http.Handler
	kafka  []kgo.Opt
	log    *slog.Logger
	secure bool // cookies over https only

	texts  *translations
	assets *assets
	pages  pages
	hub    *hub
	pulse  pulse

	mu    sync.Mutex
	menus map[string]menu // the last menu read, by language
}

// New returns a service and registers its metrics. Run makes it follow the topics.
func New(cfg Config) (*Service, error) {
	if cfg.API == nil || len(cfg.Kafka) == 0 {
		return nil, errors.New("frontend: API and Kafka must be set")
	}
	s := &Service{
		api: cfg.API, kafka: cfg.Kafka, log: cfg.Log, secure: strings.HasPrefix(cfg.PublicURL, "https://"),
		hub: newHub(maxStreams), menus: map[string]menu{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if s.texts, err = loadTranslations(); err != nil {
		return nil, fmt.Errorf("frontend: %w", err)
	}
	if s.assets, err = loadAssets(); err != nil {
		return nil, fmt.Errorf("frontend: %w", err)
	}
	if s.pages, err = loadPages(); err != nil {
		return nil, fmt.Errorf("frontend: %w", err)
	}
	if cfg.Metrics != nil {
		if err := s.register(cfg.Metrics); err != nil {
			return nil, fmt.Errorf("frontend: %w", err)
		}
	}
	return s, nil
}

func (s *Service) register(reg prometheus.Registerer) error {
	return errors.Join(
		reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "pizza_frontend_streams", Help: "Trackers that are being sent an order's steps.",
		}, func() float64 { return float64(s.hub.countStreams()) })),
		reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "pizza_frontend_tailing", Help: "1 while Kafka tells which orders changed; while 0, open trackers ask every few seconds.",
		}, func() float64 {
			if s.pulse.isAlive() {
				return 1
			}
			return 0
		})),
	)
}

// Handler returns the handler of the pages, which passes the order API's routes to
// Config.API. The caller wraps it in web.Handler, which has the security headers,
// the limits and the access log.
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.handleGetShop)
	mux.HandleFunc("POST /orders", s.handlePostOrder)
	mux.HandleFunc("GET /orders", s.handleGetOrders)
	mux.HandleFunc("GET /orders/{id}", s.handleGetTracker)
	mux.HandleFunc("GET /api/v1/orders/{id}/events", s.handleGetEvents)
	mux.HandleFunc("GET /static/{name...}", s.handleGetStatic)
	mux.Handle("GET /favicon.ico", http.RedirectHandler("/static/icon.svg", http.StatusFound))
	mux.HandleFunc("GET /robots.txt", s.handleGetRobots)
	for _, pattern := range []string{"/api/", "/openapi.json", "/docs/", "/asyncapi.yaml"} {
		mux.Handle(pattern, s.api)
	}
	mux.Handle("/orders/{id}", methodNotAllowed("GET, HEAD"))
	mux.Handle("/orders", methodNotAllowed("GET, HEAD, POST"))
	mux.Handle("/{$}", methodNotAllowed("GET, HEAD"))
	mux.HandleFunc("/", s.handleNotFound)
	return mux
}

// methodNotAllowed answers 405. Without it a method that a page does not have would
// match the pattern "/" and be answered 404.
func methodNotAllowed(allowed string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", allowed)
		http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
	})
}
