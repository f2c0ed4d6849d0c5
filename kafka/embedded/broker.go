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

// DefaultListen is the address of a broker without Config.Listen.
const DefaultListen = "127.0.0.1:9092"

const (
	// segmentBytes is the size at which a partition begins a new file. Only whole files are deleted, and all are read at
	// the start, so it limits how much stays beyond a topic's retention, and how much a start reads.
	segmentBytes = 16 << 20

	// cleanInterval is how often records past their retention are deleted.
	cleanInterval = time.Minute

	// checkpointInterval is how often the checkpoint advances, to a time checkpointLag ago: what was synced before is
	// on the disk even if the machine dies.
	checkpointInterval = 20 * time.Second
	checkpointLag      = 5 * time.Second
)

// A Config says where the embedded broker keeps its data and where it listens.
type Config struct {
	Dir    string // created with mode 0700, as are missing parents; the mode of one that exists is changed
	Listen string // host:port, DefaultListen when empty; port 0 means any free port

	Log *slog.Logger // nil discards

	// Groups are reserved for members of the classic protocol, which franz-go has: members of the other protocol cannot
	// take them while they are empty.
	Groups []string

	// ListenFn opens the listener, nil means net.Listen. Tests pass a virtual network.
	ListenFn func(network, address string) (net.Listener, error)
}

// A Broker is a running embedded broker: one node with Kafka's protocol, which syncs every batch and every committed
// offset to its directory before it acknowledges them, and creates topics only by request.
type Broker struct {
	dir     string
	log     *brokerLog
	lock    io.Closer
	cluster *kfake.Cluster
	address string

	listener *listener
	opened   time.Time
	unclean  time.Time // see UncleanSince

	checkpointMu sync.Mutex
	recovered    bool      // the data from before the start are complete
	checkpoint   time.Time // up to when the data are complete

	stop      chan struct{}  // closed to end the cleaner
	cleaner   sync.WaitGroup // and this waits for its end
	closeOnce sync.Once
	closeErr  error
}

// Start opens the directory, repairs the damage of a crash or a full disk, and serves until Close. The error wraps
// [ErrDirectoryInUse] when another process has the directory, and syscall.EADDRINUSE when the port is in use.
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
			_ = b.lock.Close() // only the first error is returned
		}
	}()
	b.opened = time.Now()
	if b.unclean, err = openCheckpoint(b.dir, b.opened); err != nil {
		return err
	}
	if b.recovered = b.unclean.IsZero(); b.recovered {
		b.checkpoint = b.opened
	}
	if err := repair(b.dir, b.log.log); err != nil {
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
		// A commit can be removed only from the file, which the cluster must not have open.
		if err := dropCommits(b.dir, stale, b.log.log); err != nil {
			return err
		}
	}
	b.cleaner.Go(b.clean)
	return nil
}

// open listens and loads the directory. Connections are served once serve is called.
func (b *Broker) open(cfg Config) (serve func(), err error) {
	groups, err := readGroups(b.dir)
	if err != nil {
		return nil, err
	}
	registry := &groupRegistry{groups: groups, reserved: cfg.Groups, exists: func(group string) bool { return b.cluster.GroupInfo(group) != nil }}
	ln, err := listen(cfg, &filter{groups: registry, partitions: b.partitions}, b.log.log)
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
		_ = ln.Close() // only the first error is returned
		return nil, fmt.Errorf("open %s: %w; restore it from a backup, or move it away to begin with an empty one", b.dir, err)
	}
	b.cluster, b.listener, b.address = cluster, ln, ln.Addr().String()
	return ln.serve, nil
}

// newClusterID is the id of a new directory, by which clients tell it from one that was deleted.
func newClusterID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(id[:])
}

// staleCommits returns the committed offsets past the end of their partition. An expired or damaged partition begins
// again at a lower offset, and the group would skip all records up to its old commit.
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

// clean deletes records past their retention, and advances the checkpoint. kfake's own cleaner would begin only when a
// topic is created, and so never in a process that finds all topics.
func (b *Broker) clean() {
	tick, checkpoint := time.NewTicker(cleanInterval), time.NewTicker(checkpointInterval)
	defer tick.Stop()
	defer checkpoint.Stop()
	for {
		select {
		case <-b.stop:
			return
		case <-tick.C:
			b.cluster.ApplyRetention()
		case <-checkpoint.C:
			if err := b.advanceCheckpoint(time.Now().Add(-checkpointLag), false); err != nil {
				b.log.log.Warn("embedded broker: cannot write its checkpoint", "error", err)
			}
		}
	}
}

// Addrs returns the host:port at which clients reach the broker.
func (b *Broker) Addrs() []string { return []string{b.address} }

// Dialer returns a dial function for clients of this process, whose connections are never closed for those of other
// processes. It dials by dial, or by TCP when that is nil.
func (b *Broker) Dialer(dial func(ctx context.Context, network, address string) (net.Conn, error)) func(ctx context.Context, network, address string) (net.Conn, error) {
	return b.listener.dialer(dial)
}

// partitions is the number of partitions of all topics on disk.
func (b *Broker) partitions() (int, error) {
	owned, err := ownedPartitions(b.dir)
	return len(owned), err
}

// UncleanSince returns the last checkpoint if the broker was not closed cleanly since, and the zero time otherwise. A kill
// loses no record, but a machine that dies may not have written what it has synced: every record that was produced
// since the checkpoint should be produced again.
func (b *Broker) UncleanSince() time.Time { return b.unclean }

// MarkRecovered says that the records since UncleanSince will be produced again, even if every process dies now. From now
// on the checkpoint advances: else a process that is always killed would have more to produce again at each start.
func (b *Broker) MarkRecovered() error { return b.advanceCheckpoint(b.opened, true) }

// advanceCheckpoint records that the data are complete up to a time, once the data from before the start are (recovered).
func (b *Broker) advanceCheckpoint(at time.Time, recovered bool) error {
	b.checkpointMu.Lock()
	defer b.checkpointMu.Unlock()
	if b.recovered = b.recovered || recovered; !b.recovered || !at.After(b.checkpoint) {
		return nil
	}
	b.checkpoint = at
	return writeCheckpoint(b.dir, at)
}

// Close stops serving, writes the state in memory to the disk and releases the directory. Consumers should have left
// their groups before. Later calls wait for the first one and return its result.
func (b *Broker) Close() error {
	b.closeOnce.Do(func() {
		close(b.stop)
		b.cleaner.Wait()
		b.log.collect()
		b.cluster.Close()
		failures := b.log.failures()
		if failures == nil {
			failures = removeCheckpoint(b.dir)
		}
		if err := errors.Join(failures, b.lock.Close()); err != nil {
			b.closeErr = fmt.Errorf("stop the embedded broker: %w", err)
		}
	})
	return b.closeErr
}

// A brokerLog is the log of kfake, which reports errors only there: those of Close are collected.
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
	case kfake.LogLevelInfo: // about every unknown request
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

// collect makes the log keep errors instead of writing them.
func (l *brokerLog) collect() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.collecting = true
}

// failures are the errors that were collected.
func (l *brokerLog) failures() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.errs...)
}
