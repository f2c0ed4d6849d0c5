package pizzaflow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"pizzaflow/event"
	"pizzaflow/frontend"
	"pizzaflow/internal/filelock"
	"pizzaflow/internal/retry"
	"pizzaflow/kafka"
	"pizzaflow/kafka/embedded"
	"pizzaflow/ops"
	"pizzaflow/outbox"
	"pizzaflow/outbox/inbox"
	"pizzaflow/outbox/relay"
	"pizzaflow/sandbox"
	"pizzaflow/sqldb"
	"pizzaflow/web"
)

// A Host is what a process stands on.
type Host struct {
	Stdout io.Writer    // gets a line KEY=host:port for each listener
	Stderr io.Writer    // gets the welcome
	Log    *slog.Logger //

	// How to listen, and how to reach all that the services call but databases:
	// brokers, payment provider, mail server, SMS gateway, order services
	// elsewhere. The net package's ways when nil.
	Listen func(network, address string) (net.Listener, error)
	Dial   func(ctx context.Context, network, address string) (net.Conn, error)
}

// A process is one running pizza. It has three stages, started from the ground
// up and stopped from the doors down: each ends when what stands on it has.
type process struct {
	cfg   Config
	host  Host
	asked context.Context // ends when somebody wants the process to stop
	ctx   context.Context // ends when asked does, and with the first failure
	fail  context.CancelCauseFunc

	stopBegan func() time.Time // the first who asks for it begins the stop

	ground *stage // broker, sandbox, admin
	engine *stage // relays, consumers, workers
	doors  *stage // what customers talk to

	registry   *prometheus.Registry
	metrics    prometheus.Registerer   // of the registry, guarded
	listeners  map[string]net.Listener // by key
	publicURL  string
	outside    struct{ provider, smtp, sms string }
	kafka      kafka.Config
	unclean    time.Time    // since when the embedded broker may lack records
	rewound    func()       // see makeUp
	door       *web.Gate    // what is behind HTTP_ADDR
	orders     *web.Gate    // the order API of this process
	openOrders func()       // has it take orders, once its service is there
	api        http.Handler // the order API that the pages use
	operators  *ops.API
	closers    []io.Closer
	topics     chan struct{} // closed when the topics are there
	readiness  readiness
}

// Run runs the services of the configuration until ctx ends, then stops them
// in good order: no new requests, running ones finished, offsets committed,
// leases given back. What has not ended 55 s after ctx has is named in an error
// and left behind: then the process must end, as if it had been killed. An
// error of the configuration wraps ErrConfig.
func Run(ctx context.Context, cfg Config, host Host) error {
	if err := cfg.Validate(); err != nil {
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

// startMoment is how long requests wait for a start of which nothing bad is
// known: several times what it takes.
const startMoment = 3 * time.Second

func newProcess(ctx context.Context, cfg Config, host Host) *process {
	p := &process{
		cfg: cfg, host: host, asked: ctx, registry: prometheus.NewRegistry(), listeners: map[string]net.Listener{},
		topics: make(chan struct{}), door: web.NewGate(startMoment), orders: web.NewGate(startMoment), openOrders: func() {},
	}
	p.ctx, p.fail = context.WithCancelCause(ctx)
	p.stopBegan = sync.OnceValue(time.Now)
	p.ground, p.engine, p.doors = newStage(p.ctx, p.fail), newStage(p.ctx, p.fail), newStage(p.ctx, p.fail)
	p.metrics = web.Guard(p.registry, host.Log)
	p.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return p
}

// run starts everything, and stops it when its time has come.
func (p *process) run() error {
	err := p.start(p.ctx)
	if err != nil && p.asked.Err() != nil {
		p.host.Log.Info("stopped before all was up", "err", err)
		err = nil
	}
	if err != nil {
		p.fail(err)
	}
	<-p.ctx.Done()
	return errors.Join(err, p.stop())
}

// start brings everything up in order. The ports come first: one that is taken
// must stop the start before anything has begun. Then comes what answers while
// the rest waits for its databases.
func (p *process) start(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		p.listen, p.startAdmin, p.startDoors, p.startSandbox, p.startBroker, p.startFrontend, p.startServices,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	p.readiness.started.Store(true)
	p.welcome()
	return nil
}

// listen takes every port the process needs, and tells which it got.
func (p *process) listen(context.Context) error {
	for _, l := range []struct {
		key, addr string
		needed    bool
	}{
		{"HTTP_ADDR", p.cfg.HTTPAddr, p.cfg.runs("order") || p.cfg.runs("frontend")},
		{"ADMIN_ADDR", p.cfg.AdminAddr, p.cfg.Services != "sandbox"},
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
		p.listeners[l.key] = ln
		p.closers = append(p.closers, ln)
		if err := p.tell(l.key, ln.Addr().String()); err != nil {
			return err
		}
	}
	p.publicURL = p.cfg.PublicURL
	if ln := p.listeners["HTTP_ADDR"]; p.publicURL == "" && ln != nil {
		p.publicURL = "http://" + visible(ln.Addr().String())
	} else if p.publicURL == "" {
		p.publicURL = "http://" + visible(p.cfg.HTTPAddr) // where the frontend of another process is, as far as this one knows
	}
	return nil
}

func (p *process) tell(key, address string) error {
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
	web, mail := p.listeners["SANDBOX_ADDR"], p.listeners["SANDBOX_SMTP_ADDR"]
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
	p.ground.Go("sandbox", func(ctx context.Context) error { return s.Run(ctx, web, mail) })
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
	p.unclean = broker.UncleanSince()
	p.rewound = makeUp(broker, p.host.Log)
	p.kafka = p.cfg.kafka(broker.Addrs())
	p.kafka.Dial = broker.Dialer(p.host.Dial)
	p.ground.Go("broker", func(ctx context.Context) error {
		<-ctx.Done()
		return broker.Close()
	})
	return p.tell("KAFKA_LISTEN", broker.Addrs()[0])
}

// makeUp returns what the relay of each service calls when it is sure to publish again what the broker may have lost:
// when all have, the broker may forget since when that was. Where some run in other processes, it does not.
func makeUp(broker *embedded.Broker, log *slog.Logger) func() {
	var left atomic.Int32
	left.Store(int32(len(domain)))
	return func() {
		if left.Add(-1) > 0 {
			return
		}
		if err := broker.MadeUp(); err != nil {
			log.Warn("events will be published again once more after the next unclean stop", "error", err)
		}
	}
}

func (p *process) startServices(ctx context.Context) error {
	if p.cfg.needsKafka() {
		if _, err := p.kafka.Options(); err != nil { // its files: the rest is valid
			return KafkaError(err)
		}
		missing := func(reason error) {
			p.readiness.wait("the topics", fmt.Errorf("the topics are not there yet: %w", reason))
		}
		missing(fmt.Errorf("not seen since %s", time.Now().Format(time.TimeOnly)))
		p.engine.Go("topics", func(ctx context.Context) error {
			err := kafka.AwaitTopics(ctx, p.kafka, p.host.Log, missing, p.cfg.topicsHere()...)
			if ctx.Err() != nil {
				return nil // told to stop while it waited for the broker
			}
			if err != nil {
				return KafkaError(err)
			}
			p.readiness.wait("the topics", nil)
			close(p.topics)
			<-ctx.Done()
			return nil
		})
	}
	for i, d := range p.cfg.Databases() {
		if !d.Runs {
			continue
		}
		if err := p.startService(ctx, d, domain[i].build); err != nil {
			return err
		}
	}
	p.openOrders()
	return nil
}

func (p *process) startService(ctx context.Context, d ops.Database, build builder) error {
	if err := p.lock(d); err != nil {
		return err
	}
	db, err := p.awaitDatabase(ctx, d)
	if err != nil {
		return err
	}
	name := d.Service
	p.readiness.add(name, db)
	for use, pool := range db.Pools() {
		p.metrics.MustRegister(collectors.NewDBStatsCollector(pool, strings.TrimSpace(name+" "+use)))
	}
	p.operators.Add(name, db)
	p.closers = append(p.closers, db)
	out := outbox.New(db, "/"+name+"-service")
	svc, err := build(p, out, p.host.Log.With("service", name), p.metrics)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	opts, err := p.kafka.Options()
	if err != nil {
		return KafkaError(err)
	}
	reg := web.Guard(prometheus.WrapRegistererWithPrefix("pizza_", p.registry), p.host.Log)
	consumer := inbox.New(inbox.Config{
		Outbox: out, Group: consumerGroup(name), Kafka: opts, Attempts: p.cfg.RetryAttempts, Delay: p.cfg.RetryDelay,
		TopicRetention: p.cfg.topicsHold(), Replay: "pizza dlq replay", Metrics: reg, Log: p.host.Log,
	})
	svc.Subscribe(consumer)
	relay := relay.New(relay.Config{Outbox: out, Service: name, Kafka: opts, Poll: p.cfg.OutboxPollInterval, RepublishSince: p.unclean, Rewound: p.rewound, Alone: alone(out), Metrics: reg, Log: p.host.Log})
	p.engine.Go(name+" worker", svc.Run)
	p.engine.Go(name+" consumer", p.withTopics(consumer.Run))
	p.engine.Go(name+" relay", p.withTopics(relay.Run))
	if name == "order" {
		mux := http.NewServeMux()
		svc.Routes(mux)
		p.openOrders = func() { p.orders.Open(mux) }
	}
	return nil
}

// awaitDatabase opens a service's database, and waits for one that is not there
// yet, is locked or full: no process needs another to have started before it.
func (p *process) awaitDatabase(ctx context.Context, d ops.Database) (*sqldb.DB, error) {
	name := d.Service
	what := "the " + name + " database"
	p.readiness.wait(what, fmt.Errorf("waiting for "+what+": it has not answered since %s", time.Now().Format(time.TimeOnly)))
	for attempt := 1; ; attempt++ {
		db, err := p.openDatabase(ctx, d)
		if err != nil && ctx.Err() != nil { // the URL has no part in it
			return nil, fmt.Errorf("%s: told to stop while opening the database: %w", name, ctx.Err())
		}
		if err == nil || !sqldb.IsUnavailable(err) || sqldb.IsFatal(err) {
			p.readiness.wait(what, nil)
			return db, err
		}
		p.openOrders() // the services that are still to come are not waited for
		p.door.StopWaiting()
		p.orders.StopWaiting()
		p.readiness.wait(what, fmt.Errorf("waiting for %s: %w", what, err))
		p.host.Log.Warn("the database does not serve", "service", name, "err", err)
		if !retry.Sleep(ctx, retry.Backoff(attempt, 200*time.Millisecond, 5*time.Second)) {
			return nil, fmt.Errorf("%s: told to stop while waiting for the database: %w", name, err)
		}
	}
}

// openDatabase opens a service's database, brings it up to date and makes sure
// that it gives no number twice.
func (p *process) openDatabase(ctx context.Context, d ops.Database) (*sqldb.DB, error) {
	db, err := openDatabase(ctx, p.cfg, d)
	if err != nil {
		return nil, err
	}
	moved, err := outbox.RepairNumbering(ctx, db)
	if err != nil {
		return nil, errors.Join(bad(d.Option, "%w", err), db.Close())
	}
	for _, table := range moved {
		p.host.Log.Warn("the sequence of a table stood below its rows and was moved: was the database restored?", "service", d.Service, "table", table)
	}
	return db, nil
}

// withTopics has run wait for the topics: orders are taken before Kafka is
// there, and published once it is.
func (p *process) withTopics(run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return nil
		case <-p.topics:
			return run(ctx)
		}
	}
}

// lock keeps a second process away from a SQLite file: SQLite would let it in,
// and the two would wait for each other at every write.
func (p *process) lock(d ops.Database) error {
	path, lite := strings.CutPrefix(d.URL, "sqlite:")
	if !lite {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return bad("DATA_DIR", "%s.db: %w", d.Service, err)
	}
	l, err := filelock.Acquire(path + ".lock")
	if err != nil {
		return bad("DATA_DIR", "%s.db: %w", d.Service, err)
	}
	p.closers = append(p.closers, l)
	if err := ops.CheckNotMoved(path); err != nil {
		return bad("DATA_DIR", "%s.db: %w", d.Service, err)
	}
	return nil
}

// startFrontend puts the pages behind the door, or the order API alone, which
// is there when its database is.
func (p *process) startFrontend(context.Context) error {
	if p.cfg.runs("order") {
		p.api = p.orders
	}
	if !p.cfg.runs("frontend") {
		p.door.Open(p.orders)
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
	p.engine.Go("frontend", p.withTopics(shop.Run))
	p.door.Open(shop.Handler())
	return nil
}

// startDoors serves what is public, from before there is anything behind it.
func (p *process) startDoors(context.Context) error {
	proxies, err := p.cfg.trustedProxies()
	if err != nil {
		return err
	}
	if ln := p.listeners["HTTP_ADDR"]; ln != nil {
		limit := p.cfg.RateLimit
		if !p.cfg.runs("frontend") {
			limit = 0 // the peers are frontends, each of which speaks for many customers
		}
		h := web.Handler(p.lastCalls(p.door), web.HandlerConfig{Log: p.host.Log, RateLimit: limit, TrustedProxies: proxies})
		p.doors.Go("HTTP_ADDR", func(ctx context.Context) error { return web.Serve(ctx, ln, h, p.host.Log) })
	}
	return nil
}

// startAdmin serves metrics, health and the operator API, from before there is anything to tell:
// a process that waits for its database is alive and not ready.
func (p *process) startAdmin(context.Context) error {
	if ln := p.listeners["ADMIN_ADDR"]; ln != nil {
		p.operators = ops.NewAPI(ops.APIConfig{Token: p.cfg.OpsToken, Databases: p.cfg.Databases(), RateLimit: p.cfg.RateLimit, Log: p.host.Log})
		admin := web.Admin(p.registry, p.ready)
		admin.Handle("/api/", p.operators.Handler())
		p.ground.Go("ADMIN_ADDR", func(ctx context.Context) error { return web.Serve(ctx, ln, admin, p.host.Log) })
	}
	return nil
}

// welcome tells a person where everything is.
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
	if ln := p.listeners["SANDBOX_ADDR"]; ln != nil {
		line("Sandbox", fmt.Sprintf("http://%s/ (what customers received, and the payments)", ln.Addr()))
	}
	if ln := p.listeners["ADMIN_ADDR"]; ln != nil {
		line("Admin", fmt.Sprintf("http://%s/metrics", ln.Addr()))
	}
	if len(p.kafka.Brokers) > 0 && (p.cfg.needsKafka() || p.cfg.runs("broker")) {
		line("Broker", strings.Join(p.kafka.Brokers, ","))
		line("Events", fmt.Sprintf("kcat -b %s -t %s -C -e", strings.Join(p.kafka.Brokers, ","), event.OrderTopic))
	}
	_, _ = fmt.Fprintln(p.host.Stderr, b.String()) // there is nobody to tell that nobody reads it
}
