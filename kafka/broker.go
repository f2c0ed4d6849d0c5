package kafka

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// DefaultListen is where the embedded broker listens when nothing else is said.
const DefaultListen = "127.0.0.1:9092"

const (
	// segmentBytes is the size at which a partition begins a new file. Only whole files are deleted and all
	// are read at start, so this bounds both what stays beyond a topic's retention and what a start reads.
	segmentBytes = 16 << 20

	// cleanInterval is how often records past their retention are dropped.
	cleanInterval = time.Minute
)

// BrokerConfig says where the embedded broker keeps its data and where it listens.
type BrokerConfig struct {
	Dir    string // created with mode 0700, its missing parents too; an existing one is narrowed to 0700
	Listen string // host:port, DefaultListen when empty; port 0 means any free one

	Log *slog.Logger // nil discards

	// ListenFn opens the listener, nil means net.Listen. Tests pass a virtual network.
	ListenFn func(network, address string) (net.Listener, error)

	cleanEvery time.Duration // cleanInterval when 0; tests clean more often
}

// Broker is the embedded broker: one node that speaks Kafka's protocol, syncs every batch and every committed
// offset to its directory before it acknowledges them, and creates no topic that it was not asked to create.
type Broker struct {
	dir     string
	log     *brokerLog
	lock    *os.File
	cluster *kfake.Cluster
	address string

	listener *listener
	unclean  time.Time // see UncleanSince

	stop      chan struct{}  // closed to end the cleaner
	cleaner   sync.WaitGroup // and this waits for its end
	closeOnce sync.Once
	closeErr  error
}

// StartBroker opens the directory, mends what a crash or a full disk left broken in it, and serves until
// Close. The error matches [ErrDirectoryInUse] when another process has the directory, and
// syscall.EADDRINUSE when the port is taken.
func StartBroker(cfg BrokerConfig) (*Broker, error) {
	b := &Broker{dir: cfg.Dir, log: &brokerLog{log: orDiscard(cfg.Log)}, stop: make(chan struct{})}
	if err := b.start(cfg); err != nil {
		return nil, fmt.Errorf("start the embedded broker: %w", err)
	}
	return b, nil
}

func (b *Broker) start(cfg BrokerConfig) (err error) {
	if err := makePrivate(cfg.Dir); err != nil {
		return err
	}
	if b.lock, err = lockDirectory(cfg.Dir); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = b.lock.Close() // the first error is the one to tell
		}
	}()
	if b.unclean, err = markRunning(b.dir, time.Now()); err != nil {
		return err
	}
	if err := mend(b.dir, b.log.log); err != nil {
		return err
	}
	for {
		serve, err := b.open(cfg)
		if err != nil {
			return err
		}
		stale, err := b.staleCommits()
		if err == nil && len(stale) == 0 {
			serve()
			break
		}
		b.cluster.Close()
		if err != nil {
			return err
		}
		// A commit can be taken back in the file alone, which is the cluster's while it is open.
		if err := dropCommits(b.dir, stale, b.log.log); err != nil {
			return err
		}
	}
	interval := cfg.cleanEvery
	if interval == 0 {
		interval = cleanInterval
	}
	b.cleaner.Go(func() { b.clean(interval) })
	return nil
}

// open listens and loads the directory. No connection is served before serve is called.
func (b *Broker) open(cfg BrokerConfig) (serve func(), err error) {
	groups, err := readGroups(b.dir)
	if err != nil {
		return nil, err
	}
	book := &groupBook{groups: groups, exists: func(group string) bool { return b.cluster.GroupInfo(group) != nil }}
	ln, err := listen(cfg, &door{groups: book, partitions: b.partitions}, b.log.log)
	if err != nil {
		return nil, err
	}
	cluster, err := kfake.NewCluster(
		kfake.NumBrokers(1),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return ln, nil }),
		kfake.ClusterID(newClusterID()), // an existing directory keeps its own
		kfake.DataDir(b.dir),
		kfake.SyncWrites(),
		kfake.MaxVersions(offered()),
		kfake.BrokerConfigs(map[string]string{"log.segment.bytes": strconv.Itoa(segmentBytes)}),
		kfake.WithLogger(b.log),
	)
	if err != nil {
		_ = ln.Close() // the first error is the one to tell
		return nil, fmt.Errorf("open %s: %w; restore it from a backup, or move it away to begin with an empty one", b.dir, err)
	}
	b.cluster, b.listener, b.address = cluster, ln, ln.Addr().String()
	return ln.serve, nil
}

// newClusterID names a new directory, so that clients can tell it from one that was wiped.
func newClusterID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(id[:])
}

// staleCommits returns the committed offsets that lie past the end of their log. An expired or damaged log
// begins again at a lower offset; a group would then skip everything up to its old commit.
func (b *Broker) staleCommits() (map[commit]bool, error) {
	commits, err := readCommits(b.dir)
	if err != nil {
		return nil, err
	}
	stale := make(map[commit]bool)
	for c, offset := range commits {
		log := b.cluster.PartitionInfo(c.Topic, c.Partition)
		if log == nil || offset > log.HighWatermark {
			stale[c] = true
		}
	}
	return stale, nil
}

// clean drops what is past its retention. The broker's own cleaner would begin only when a topic is created,
// and so never in a process that found all of them.
func (b *Broker) clean(interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-b.stop:
			return
		case <-tick.C:
			b.cluster.ApplyRetention()
		}
	}
}

// Addrs returns the host:port by which clients reach the broker.
func (b *Broker) Addrs() []string { return []string{b.address} }

// Dialer returns how clients of this process reach the broker: as by dial, nil for TCP, and never turned away for
// strangers.
func (b *Broker) Dialer(dial func(ctx context.Context, network, address string) (net.Conn, error)) func(ctx context.Context, network, address string) (net.Conn, error) {
	return b.listener.dialer(dial)
}

// partitions counts those of all topics, as they are on disk.
func (b *Broker) partitions() (int, error) {
	owned, err := ownedPartitions(b.dir)
	return len(owned), err
}

// UncleanSince returns when the data were last known to be whole, if the broker was not closed cleanly since, and
// the zero time otherwise. A kill loses nothing, but a machine that dies may lie about what it has written:
// whatever was produced since then should be produced again.
func (b *Broker) UncleanSince() time.Time { return b.unclean }

// Close stops serving, writes what only memory knew and releases the directory. Consumers should have left
// their groups before. Only the first call does something; the others wait for it and return its result.
func (b *Broker) Close() error {
	b.closeOnce.Do(func() {
		close(b.stop)
		b.cleaner.Wait()
		b.log.collect()
		b.cluster.Close()
		failures := b.log.failures()
		if failures == nil {
			failures = markClosed(b.dir)
		}
		if err := errors.Join(failures, b.lock.Close()); err != nil {
			b.closeErr = fmt.Errorf("stop the embedded broker: %w", err)
		}
	})
	return b.closeErr
}

// brokerLog takes the broker's messages. It reports no error but in messages, so those of a stop are collected.
type brokerLog struct {
	log *slog.Logger

	mu         sync.Mutex
	collecting bool
	errs       []error
}

// Logf implements kfake.Logger.
func (l *brokerLog) Logf(level kfake.LogLevel, format string, args ...any) {
	var to slog.Level
	switch level {
	case kfake.LogLevelError:
		to = slog.LevelError
	case kfake.LogLevelWarn:
		to = slog.LevelWarn
	case kfake.LogLevelInfo: // every request that it does not understand
		to = slog.LevelDebug
	default:
		return
	}
	if level == kfake.LogLevelError {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.collecting {
			l.errs = append(l.errs, fmt.Errorf(format, args...))
			return
		}
	}
	if l.log.Enabled(context.Background(), to) {
		l.log.Log(context.Background(), to, "embedded broker", "message", fmt.Sprintf(format, args...))
	}
}

func (l *brokerLog) collect() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.collecting = true
}

func (l *brokerLog) failures() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.errs...)
}
