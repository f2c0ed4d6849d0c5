package embedded

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
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

	// markInterval is how often it is noted that what was synced settleTime ago is whole.
	markInterval = 20 * time.Second
	settleTime   = 5 * time.Second
)

// Config says where the embedded broker keeps its data and where it listens.
type Config struct {
	Dir    string // created with mode 0700, its missing parents too; an existing one is narrowed to 0700
	Listen string // host:port, DefaultListen when empty; port 0 means any free one

	Log *slog.Logger // nil discards

	// Groups are kept for members of the classic protocol, which is what franz-go speaks: nobody else can take
	// them while they are empty.
	Groups []string

	// ListenFn opens the listener, nil means net.Listen. Tests pass a virtual network.
	ListenFn func(network, address string) (net.Listener, error)

	cleanEvery time.Duration // cleanInterval when 0; tests clean more often
	markEvery  time.Duration // the same of markInterval
}

// Broker is the embedded broker: one node that speaks Kafka's protocol, syncs every batch and every committed
// offset to its directory before it acknowledges them, and creates no topic that it was not asked to create.
type Broker struct {
	dir     string
	log     *brokerLog
	lock    io.Closer
	cluster *kfake.Cluster
	address string

	listener *listener
	opened   time.Time
	unclean  time.Time // see UncleanSince

	marking sync.Mutex
	whole   bool      // nothing from before the start is in doubt
	marked  time.Time // up to when the data are noted to be whole

	markEvery time.Duration

	stop      chan struct{}  // closed to end the cleaner
	cleaner   sync.WaitGroup // and this waits for its end
	closeOnce sync.Once
	closeErr  error
}

// Start opens the directory, mends what a crash or a full disk left broken in it, and serves until
// Close. The error matches [ErrDirectoryInUse] when another process has the directory, and
// syscall.EADDRINUSE when the port is taken.
func Start(cfg Config) (*Broker, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	b := &Broker{dir: cfg.Dir, log: &brokerLog{log: cfg.Log}, stop: make(chan struct{})}
	if err := b.start(cfg); err != nil {
		return nil, fmt.Errorf("start the embedded broker: %w", err)
	}
	return b, nil
}

func (b *Broker) start(cfg Config) (err error) {
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
	b.opened = time.Now()
	if b.unclean, err = markRunning(b.dir, b.opened); err != nil {
		return err
	}
	if b.whole = b.unclean.IsZero(); b.whole {
		b.marked = b.opened
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
	if b.markEvery = cfg.markEvery; b.markEvery == 0 {
		b.markEvery = markInterval
	}
	b.cleaner.Go(func() { b.clean(interval) })
	return nil
}

// open listens and loads the directory. No connection is served before serve is called.
func (b *Broker) open(cfg Config) (serve func(), err error) {
	groups, err := readGroups(b.dir)
	if err != nil {
		return nil, err
	}
	book := &groupBook{groups: groups, kept: cfg.Groups, exists: func(group string) bool { return b.cluster.GroupInfo(group) != nil }}
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

// clean drops what is past its retention, and moves the mark up to which the data are whole. The broker's own cleaner would begin only when a topic is created,
// and so never in a process that found all of them.
func (b *Broker) clean(interval time.Duration) {
	tick, mark := time.NewTicker(interval), time.NewTicker(b.markEvery)
	defer tick.Stop()
	defer mark.Stop()
	for {
		select {
		case <-b.stop:
			return
		case <-tick.C:
			b.cluster.ApplyRetention()
		case <-mark.C:
			if err := b.moveMark(time.Now().Add(-min(settleTime, b.markEvery)), false); err != nil {
				b.log.log.Warn("the embedded broker cannot note that its data are whole", "error", err)
			}
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

// MadeUp notes that whatever was produced before this start, since UncleanSince, is sure to be produced again, even if
// everybody dies now. From now on only the last seconds are in doubt: else a process that is always killed would
// produce more again at each start.
func (b *Broker) MadeUp() error { return b.moveMark(b.opened, true) }

// moveMark notes that the data are whole up to a time; madeUp, that nothing from before the start is in doubt.
func (b *Broker) moveMark(at time.Time, madeUp bool) error {
	b.marking.Lock()
	defer b.marking.Unlock()
	if b.whole = b.whole || madeUp; !b.whole || !at.After(b.marked) {
		return nil
	}
	b.marked = at
	return moveMark(b.dir, at)
}

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
