package e2e

import (
	"cmp"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/internal/testkit"
	"pizzaflow/sqldb"
)

// A setup says how the system is deployed.
type setup struct {
	engine    sqldb.Engine
	realKafka bool              // Apache Kafka, not the embedded broker
	processes []string          // SERVICES of each process; "order/2" is a second one with "order"; without any there is one process with all services
	settings  map[string]string // the same for all processes
	behind    bool              // PostgreSQL is behind a proxy
	own       *ownServers       // in place of DATABASE_URL and KAFKA_BROKERS
	binary    string            // in place of pizza
}

// ownServers are a PostgreSQL and an Apache Kafka of one test.
type ownServers struct {
	database string // its URL, "" on SQLite
	brokers  []string
	access   []kgo.Opt                               // for clients of the test
	login    func(services string) map[string]string // further settings of the process with these services, if any
}

var (
	embedded = setup{engine: sqldb.SQLite}
	servers  = setup{engine: sqldb.Postgres, realKafka: true}
	apart    = setup{engine: sqldb.Postgres, realKafka: true, processes: []string{"sandbox", "order", "payment", "notification", "frontend"}}
)

// with is s with more settings, KEY=value.
func (s setup) with(settings ...string) setup {
	s.settings = maps.Clone(s.settings)
	if s.settings == nil {
		s.settings = map[string]string{}
	}
	for _, kv := range settings {
		key, value, _ := strings.Cut(kv, "=")
		s.settings[key] = value
	}
	return s
}

// A deployment is a system deployed for one test. Its folder and databases
// outlive its processes, which can be killed and started again.
type deployment struct {
	t           *testing.T
	setup       setup
	dir         string // DATA_DIR
	logs        string // a folder
	dbURL       string // the PostgreSQL database, "" on SQLite
	brokers     []string
	access      []kgo.Opt
	httpProxies map[string]*testkit.Proxy // before the HTTP_ADDR of each process with the order service or the frontend
	sandbox     *testkit.Proxy            // before the process with the sandbox
	smtp        *testkit.Proxy
	db          *testkit.Proxy

	mu        sync.Mutex
	processes map[string]*process // by name, as started last
	printed   []string            // orders to tell about when the test fails
	turn      int                 // how often address was called
}

// kafkaFree is locked by the one deployment that uses the shared Kafka.
var kafkaFree sync.Mutex

// deploy starts the system on empty storage and returns when it is ready. When the
// test ends it is stopped, and fails the test if a process does not stop cleanly.
func deploy(t *testing.T, s setup) *deployment {
	t.Helper()
	d := prepare(t, s)
	d.start(d.setup.processes...)
	return d
}

// prepare is deploy without the start.
func prepare(t *testing.T, s setup) *deployment {
	t.Helper()
	if len(s.processes) == 0 {
		s.processes = []string{""}
	}
	d := &deployment{t: t, setup: s, dir: filepath.Join(t.TempDir(), "data"), logs: t.ArtifactDir(), processes: map[string]*process{}}
	switch {
	case s.own != nil:
		d.dbURL = s.own.database
	case s.engine == sqldb.Postgres:
		d.dbURL = newDatabase(t)
	}
	switch {
	case s.own != nil:
		d.brokers, d.access = s.own.brokers, s.own.access
	case s.realKafka:
		d.brokers = kafkaBrokers(t)
		kafkaFree.Lock()
		t.Cleanup(kafkaFree.Unlock)
		wipeKafka(t, d.brokers)
	case slices.Contains(s.processes, "broker"):
		d.brokers = []string{stableAddress(t)}
	}
	if s.behind {
		d.db = testkit.NewProxy(t)
		d.db.Lead(hostOf(t, d.dbURL))
	}
	d.httpProxies, d.sandbox, d.smtp = map[string]*testkit.Proxy{}, testkit.NewProxy(t), testkit.NewProxy(t)
	for _, name := range s.processes {
		if runs(name, "order") || runs(name, "frontend") {
			d.httpProxies[name] = testkit.NewProxy(t)
		}
	}
	t.Cleanup(d.end)
	return d
}

// servicesOf is the value of SERVICES of the process.
func servicesOf(name string) string {
	services, _, _ := strings.Cut(name, "/")
	return services
}

// runs reports whether the process runs the service.
func runs(name, service string) bool {
	services := servicesOf(name)
	return services == "" || slices.Contains(strings.Split(services, ","), service)
}

// start starts processes, as a restart if they ran before, and returns when
// they are ready.
func (d *deployment) start(names ...string) {
	d.t.Helper()
	for _, name := range names {
		d.launch(name)
	}
	for _, name := range names {
		d.awaitReady(name)
	}
}

func (d *deployment) launch(name string) {
	d.t.Helper()
	file := strings.NewReplacer(",", "+", "/", "-").Replace(name)
	if file == "" {
		file = "pizza"
	}
	p := launch(d.t, cmp.Or(d.setup.binary, pizza), servicesOf(name), d.environment(name), filepath.Dir(d.dir), filepath.Join(d.logs, file+".log"))
	d.mu.Lock()
	d.processes[name] = p
	d.mu.Unlock()
}

func (d *deployment) awaitReady(name string) {
	d.t.Helper()
	p := d.process(name)
	wrong := waitFor(d.t.Context(), startLimit, func() string {
		if !p.alive() {
			return ""
		}
		return p.ready(d.t.Context())
	})
	if !p.alive() {
		d.t.Fatalf("pizza %s ended while starting: %s", name, p.cmd.ProcessState)
	}
	if wrong != "" {
		d.t.Fatalf("pizza %s is not ready: %s", name, wrong)
	}
	d.lead(name, p)
}

// lead lets the proxies lead to the ports of the process.
func (d *deployment) lead(name string, p *process) {
	if proxy := d.httpProxies[name]; proxy != nil {
		proxy.Lead(p.address("HTTP_ADDR"))
	}
	if runs(name, "sandbox") {
		d.sandbox.Lead(p.address("SANDBOX_ADDR"))
		d.smtp.Lead(p.address("SANDBOX_SMTP_ADDR"))
	}
}

// environment is the environment of a process.
func (d *deployment) environment(name string) []string {
	env := map[string]string{
		"PATH": os.Getenv("PATH"), "HOME": filepath.Dir(d.dir), "TMPDIR": os.TempDir(), "GOCOVERDIR": os.Getenv("GOCOVERDIR"),
		"DATA_DIR": d.dir, "LOG_FORMAT": "json",
		"HTTP_ADDR": "127.0.0.1:0", "ADMIN_ADDR": "127.0.0.1:0", "KAFKA_LISTEN": "127.0.0.1:0",
		"SANDBOX_ADDR": "127.0.0.1:0", "SANDBOX_SMTP_ADDR": "127.0.0.1:0",
		"STOP_GRACE": "0s", // there is no load balancer here
	}
	if name != "" {
		env["SERVICES"] = servicesOf(name)
		env["PUBLIC_URL"] = "http://pizza.test"
	}
	has := func(service string) bool { return runs(name, service) }
	if d.dbURL != "" {
		env["DATABASE_URL"] = d.dbURL
		if d.db != nil {
			env["DATABASE_URL"] = onHost(d.dbURL, d.db.Addr())
		}
	}
	switch {
	case d.setup.realKafka, len(d.brokers) > 0 && !has("broker"):
		env["KAFKA_BROKERS"] = strings.Join(d.brokers, ",")
	case len(d.brokers) > 0:
		env["KAFKA_LISTEN"] = d.brokers[0]
	}
	if has("frontend") && !has("order") {
		env["ORDER_URL"] = d.urls("order")
	}
	if (has("payment") || has("notification")) && !has("sandbox") {
		env["PAYMENT_PROVIDER_URL"] = "sandbox://" + d.sandbox.Addr()
		env["SMS_URL"] = "http://" + d.sandbox.Addr() + "/sms/messages"
		env["SMTP_URL"] = "smtp://" + d.smtp.Addr()
	}
	if d.setup.binary != "" {
		env[clockEnv] = d.clock(name)
	}
	maps.Copy(env, d.setup.settings)
	if d.setup.own != nil && d.setup.own.login != nil {
		maps.Copy(env, d.setup.own.login(servicesOf(name)))
	}
	var out []string
	for key, value := range env {
		if value != "" {
			out = append(out, key+"="+value)
		}
	}
	return out
}

// urls are the URLs of the processes that run the service, separated by commas. They
// stay valid when a process is started again.
func (d *deployment) urls(service string) string {
	var urls []string
	for _, name := range d.setup.processes {
		if runs(name, service) {
			urls = append(urls, "http://"+d.httpProxies[name].Addr())
		}
	}
	return strings.Join(urls, ",")
}

func hostOf(t *testing.T, rawURL string) string {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

// onHost is the URL with another host and port.
func onHost(rawURL, address string) string {
	u, _ := url.Parse(rawURL) // parsed before
	u.Host = address
	return u.String()
}

// process is the process of that name as it was started last.
func (d *deployment) process(name string) *process {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.processes[name]
}

// address is the address of a process by its key, such as HTTP_ADDR: of several
// processes each in turn.
func (d *deployment) address(key string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []string
	for _, name := range d.setup.processes {
		if key == "HTTP_ADDR" && servicesOf(name) == "order" {
			continue // customers use the frontend's
		}
		if p := d.processes[name]; p != nil && p.alive() && p.address(key) != "" {
			all = append(all, p.address(key))
		}
	}
	if len(all) == 0 {
		return "none.invalid:1"
	}
	d.turn++
	return all[d.turn%len(all)]
}

// kill ends processes, or all, with SIGKILL.
func (d *deployment) kill(names ...string) {
	if len(names) == 0 {
		names = d.setup.processes
	}
	for _, name := range names {
		d.process(name).kill()
	}
}

// stop ends processes, or all, with SIGTERM, all at once.
func (d *deployment) stop(names ...string) {
	d.t.Helper()
	if len(names) == 0 {
		names = d.setup.processes
	}
	var stopping sync.WaitGroup
	for _, name := range names {
		p := d.process(name)
		if p == nil || !p.alive() {
			continue
		}
		stopping.Go(func() {
			if wrong := p.stop(); wrong != "" {
				d.t.Errorf("pizza %s %s", p.services, wrong)
			}
		})
	}
	stopping.Wait()
}

// end stops all processes. When the test has failed it prints the histories of
// orders and the logs.
func (d *deployment) end() {
	if d.t.Failed() {
		d.printHistories()
	}
	d.stop()
	if d.t.Failed() {
		files, _ := filepath.Glob(filepath.Join(d.logs, "*.log"))
		for _, f := range files {
			d.t.Log(lastWarnings(f))
		}
	}
}
