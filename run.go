package pizzaflow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"pizzaflow/event"
	"pizzaflow/frontend"
	"pizzaflow/kafka"
	"pizzaflow/kafka/embedded"
	"pizzaflow/ops"
	"pizzaflow/sandbox"
	"pizzaflow/web"
)

// A Host is the surroundings of a process.
type Host struct {
	Stdout io.Writer // gets a line KEY=host:port for each port
	Stderr io.Writer // gets the welcome
	Log    *slog.Logger

	// How to listen, and how to dial brokers, payment provider, mail server, SMS gateway and order services of other
	// processes, but not databases. The functions of the net package when nil.
	Listen func(network, address string) (net.Listener, error)
	Dial   func(ctx context.Context, network, address string) (net.Conn, error)
}

// A process is one running pizza. Its three stages are started from the infrastructure up and stopped from the listeners
// down: each is stopped when those above it have ended.
type process struct {
	cfg    Config
	host   Host
	parent context.Context // ends when the process is told to stop
	ctx    context.Context // ends when parent does, and with the first failure
	fail   context.CancelCauseFunc

	stopBegan func() time.Time // when the stop began: at the first call

	infrastructure *stage // broker, sandbox, admin
	workers        *stage // relays, consumers, workers
	listeners      *stage // the public HTTP server

	registry      *prometheus.Registry
	metrics       prometheus.Registerer   // of the registry, guarded
	ports         map[string]net.Listener // by option
	publicURL     string
	outside       struct{ provider, smtp, sms string }
	kafka         kafka.Config
	uncleanSince  time.Time    // since when the embedded broker may lack records; zero if it lacks none
	republished   func()       // see countRepublished
	publicGate    *web.Gate    // before the handler of HTTP_ADDR
	orderGate     *web.Gate    // before the order API of this process
	openOrderGate func()       // opens orderGate, once the order service is there
	api           http.Handler // the order API that the pages use
	operators     *ops.API
	closers       []io.Closer
	topicsReady   chan struct{} // closed when the topics exist
	readiness     readiness
}

// Run runs the services of the configuration until ctx ends, then stops them in good order: no new requests, running ones
// finished, offsets committed, leases released. Goroutines that have not ended 55 s after ctx are named in an error and left
// behind: then the process must end, as if it had been killed. An error of the configuration wraps ErrConfig.
func Run(ctx context.Context, cfg Config, host Host) error {
	if err := errors.Join(cfg.Validate(), cfg.CheckFiles()); err != nil {
		return err
	}
	if host.Listen == nil {
		host.Listen = net.Listen
	}
	p := newProcess(ctx, cfg, host)
	defer p.fail(nil)
	ended := make(chan error, 1)
	go func() { ended <- p.run() }()
	select {
	case err := <-ended:
		return err
	case <-p.ctx.Done():
	}
	return p.awaitEnd(ended)
}

// gateWait is how long requests wait while the process starts, unless a database is found unavailable: several times as long
// as a start takes.
const gateWait = 3 * time.Second

func newProcess(ctx context.Context, cfg Config, host Host) *process {
	p := &process{
		cfg: cfg, host: host, parent: ctx, registry: prometheus.NewRegistry(), ports: map[string]net.Listener{},
		topicsReady: make(chan struct{}), publicGate: web.NewGate(gateWait), orderGate: web.NewGate(gateWait), openOrderGate: func() {},
	}
	p.ctx, p.fail = context.WithCancelCause(ctx)
	p.stopBegan = sync.OnceValue(time.Now)
	p.infrastructure, p.workers, p.listeners = newStage(p.ctx, p.fail), newStage(p.ctx, p.fail), newStage(p.ctx, p.fail)
	p.metrics = web.Guard(p.registry, host.Log)
	p.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return p
}

// run starts the stages, waits for the end of the context, and stops them.
func (p *process) run() error {
	err := p.start(p.ctx)
	if err != nil && p.parent.Err() != nil {
		p.host.Log.Info("stopped during the start", "err", err)
		err = nil
	}
	if err != nil {
		p.fail(err)
	}
	<-p.ctx.Done()
	return errors.Join(err, p.stop())
}

// start starts the stages in order. The ports come first: a port that is taken must end the start before anything has begun.
// Next come the servers that answer while the services wait for their databases.
func (p *process) start(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		p.listen, p.startAdmin, p.startListeners, p.startSandbox, p.startBroker, p.startFrontend, p.startServices,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	p.readiness.started.Store(true)
	p.welcome()
	return nil
}

// listen opens every port that the process needs, and prints its address.
func (p *process) listen(context.Context) error {
	for _, l := range []struct {
		key, addr string
		needed    bool
	}{
		{"HTTP_ADDR", p.cfg.HTTPAddr, p.cfg.runs("order") || p.cfg.runs("frontend")},
		{"ADMIN_ADDR", p.cfg.AdminAddr, !slices.Equal(p.cfg.services(), []string{"sandbox"})},
		{"SANDBOX_ADDR", p.cfg.SandboxAddr, p.cfg.needsSandbox()},
		{"SANDBOX_SMTP_ADDR", p.cfg.SandboxSMTPAddr, p.cfg.needsSandbox()},
	} {
		if !l.needed {
			continue
		}
		ln, err := p.host.Listen("tcp", l.addr)
		if err != nil {
			return bad(l.key, "%w", err)
		}
		p.ports[l.key] = ln
		p.closers = append(p.closers, ln)
		if err := p.printAddress(l.key, ln.Addr().String()); err != nil {
			return err
		}
	}
	public, err := p.cfg.origin()
	if err != nil {
		return err
	}
	p.publicURL = public
	if ln := p.ports["HTTP_ADDR"]; p.publicURL == "" && ln != nil {
		p.publicURL = "http://" + dialable(ln.Addr().String())
	} else if p.publicURL == "" {
		p.publicURL = "http://" + dialable(p.cfg.HTTPAddr) // of the frontend in another process: the best guess
	}
	return nil
}

// printAddress prints a line for programs that start this one.
func (p *process) printAddress(key, address string) error {
	if _, err := fmt.Fprintf(p.host.Stdout, "%s=%s\n", key, address); err != nil {
		return fmt.Errorf("print addresses: %w", err)
	}
	return nil
}

func (p *process) startSandbox(context.Context) error {
	p.outside.provider, p.outside.smtp, p.outside.sms = p.cfg.PaymentProviderURL, p.cfg.SMTPURL, p.cfg.SMSURL
	if !p.cfg.needsSandbox() {
		return nil
	}
	s, err := sandbox.Open(sandbox.Config{Dir: filepath.Join(p.cfg.DataDir, "sandbox"), Log: p.host.Log})
	if err != nil {
		return bad("DATA_DIR", "%w", err)
	}
	web, mail := p.ports["SANDBOX_ADDR"], p.ports["SANDBOX_SMTP_ADDR"]
	for _, o := range []struct {
		url   *string
		value string
	}{
		{&p.outside.provider, "sandbox://" + web.Addr().String()},
		{&p.outside.smtp, "smtp://" + mail.Addr().String()},
		{&p.outside.sms, "http://" + web.Addr().String() + "/sms/messages"},
	} {
		if *o.url == "" {
			*o.url = o.value
		}
	}
	p.infrastructure.Go("sandbox", func(ctx context.Context) error { return s.Run(ctx, web, mail) })
	return nil
}

func (p *process) startBroker(context.Context) error {
	if len(p.cfg.KafkaBrokers) > 0 || !p.cfg.runs("broker") {
		p.kafka = p.cfg.kafka(nil)
		p.kafka.Dial = p.host.Dial
		return nil
	}
	broker, err := embedded.Start(embedded.Config{Dir: filepath.Join(p.cfg.DataDir, "broker"), Listen: p.cfg.KafkaListen, ListenFn: p.host.Listen, Log: p.host.Log, Groups: consumerGroups()})
	if errors.Is(err, embedded.ErrDirectoryInUse) {
		return bad("DATA_DIR", "%w", err)
	}
	if err != nil {
		return bad("KAFKA_LISTEN", "%w", err)
	}
	p.uncleanSince = broker.UncleanSince()
	p.republished = countRepublished(broker, p.host.Log)
	p.kafka = p.cfg.kafka(broker.Addrs())
	p.kafka.Dial = broker.Dialer(p.host.Dial)
	p.infrastructure.Go("broker", func(ctx context.Context) error {
		<-ctx.Done()
		return broker.Close()
	})
	return p.printAddress("KAFKA_LISTEN", broker.Addrs()[0])
}

// countRepublished returns the function that the relay of each service calls when it is sure to publish again all records
// that the broker may have lost. After the last call the broker forgets since when it may have lost some. Where services run
// in other processes there is no last call, and it remembers.
func countRepublished(broker *embedded.Broker, log *slog.Logger) func() {
	var left atomic.Int32
	left.Store(int32(len(serviceTable)))
	return func() {
		if left.Add(-1) > 0 {
			return
		}
		if err := broker.MarkRecovered(); err != nil {
			log.Warn("events will be published again once more after the next unclean stop", "error", err)
		}
	}
}

// startFrontend serves the pages on HTTP_ADDR, or the order API alone, which answers once its database is open.
func (p *process) startFrontend(context.Context) error {
	if p.cfg.runs("order") {
		p.api = p.orderGate
	}
	if !p.cfg.runs("frontend") {
		p.publicGate.Open(p.orderGate)
		return nil
	}
	if p.api == nil {
		var err error
		if p.api, err = frontend.Remote(p.cfg.OrderURL, p.host.Dial, p.host.Log); err != nil {
			return bad("ORDER_URL", "%w", err)
		}
	}
	opts, err := p.kafka.Options()
	if err != nil {
		return KafkaError(err)
	}
	shop, err := frontend.New(frontend.Config{API: p.api, Kafka: opts, PublicURL: p.publicURL, Log: p.host.Log.With("service", "frontend"), Metrics: p.metrics})
	if err != nil {
		return fmt.Errorf("frontend: %w", err)
	}
	p.workers.Go("frontend", p.withTopics(shop.Run))
	p.publicGate.Open(shop.Handler())
	return nil
}

// startListeners serves HTTP_ADDR. Until its gate is open, requests wait or get 503.
func (p *process) startListeners(context.Context) error {
	proxies, err := p.cfg.trustedProxies()
	if err != nil {
		return err
	}
	if ln := p.ports["HTTP_ADDR"]; ln != nil {
		limit := p.cfg.RateLimit
		if !p.cfg.runs("frontend") {
			limit = 0 // the peers are frontends, each with the requests of many customers
		}
		h := web.Handler(p.closeWhenStopping(p.publicGate), web.HandlerConfig{Log: p.host.Log, RateLimit: limit, TrustedProxies: proxies})
		p.listeners.Go("HTTP_ADDR", func(ctx context.Context) error { return web.Serve(ctx, ln, h, p.host.Log) })
	}
	return nil
}

// startAdmin serves metrics, health and the operator API. It comes early: a process that waits for its database is alive and
// not ready.
func (p *process) startAdmin(context.Context) error {
	if ln := p.ports["ADMIN_ADDR"]; ln != nil {
		p.operators = ops.NewAPI(ops.APIConfig{Token: p.cfg.OpsToken, Databases: p.cfg.Databases(), RateLimit: p.cfg.RateLimit, Log: p.host.Log})
		admin := web.Admin(p.registry, p.ready)
		admin.Handle("/api/", p.operators.Handler())
		p.infrastructure.Go("ADMIN_ADDR", func(ctx context.Context) error { return web.Serve(ctx, ln, admin, p.host.Log) })
	}
	return nil
}

// welcome prints the addresses for a person.
func (p *process) welcome() {
	var b strings.Builder
	b.WriteString("\nPizzaflow is running. Ctrl-C stops it.\n\n")
	line := func(what, where string) { fmt.Fprintf(&b, "  %-9s %s\n", what, where) }
	if p.cfg.runs("frontend") {
		line("Shop", p.publicURL+"/")
		line("Tracker", p.publicURL+"/orders/{order_id}")
		line("API", p.publicURL+"/docs/")
	} else if p.cfg.runs("order") {
		line("API", p.publicURL+"/api/v1/orders")
	}
	if ln := p.ports["SANDBOX_ADDR"]; ln != nil {
		line("Sandbox", fmt.Sprintf("http://%s/ (what customers received, and the payments)", ln.Addr()))
	}
	if ln := p.ports["ADMIN_ADDR"]; ln != nil {
		line("Admin", fmt.Sprintf("http://%s/metrics", ln.Addr()))
	}
	if len(p.kafka.Brokers) > 0 && (p.cfg.needsKafka() || p.cfg.runs("broker")) {
		line("Broker", strings.Join(p.kafka.Brokers, ","))
		line("Events", fmt.Sprintf("kcat -b %s -t %s -C -e", strings.Join(p.kafka.Brokers, ","), event.OrderTopic))
	}
	_, _ = fmt.Fprintln(p.host.Stderr, b.String()) // an error here could only be written to the same place
}
