package kafkatest

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"

	"pizzaflow/kafka"
)

// A Pair is two brokers in memory that share the partitions, without replicas, so
// that each is needed for its own partitions. The second can be cut off.
type Pair struct {
	kafka.Config
	second string

	mu    sync.Mutex
	cut   bool
	conns []net.Conn // to the second
}

// StartPair starts both brokers and creates the topics.
func StartPair(t testing.TB, topics ...kafka.Topic) *Pair {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(2))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	addrs := cluster.ListenAddrs()
	p := &Pair{second: addrs[1]}
	p.Config = kafka.Config{Brokers: addrs[:1], Dial: p.dial}
	for i := range topics {
		topics[i].Replicas = 1
	}
	Ensure(t, p.Config, topics...)
	return p
}

func (p *Pair) dial(ctx context.Context, network, address string) (net.Conn, error) {
	p.mu.Lock()
	cut := p.cut && address == p.second
	p.mu.Unlock()
	if cut {
		return nil, errors.New("the second broker is cut off")
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err == nil && address == p.second {
		p.mu.Lock()
		p.conns = append(p.conns, conn)
		p.mu.Unlock()
	}
	return conn, err
}

// Cut closes all connections to the second broker and refuses new ones (off), or
// lets it be reached again.
func (p *Pair) Cut(off bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = off
	for _, c := range p.conns {
		_ = c.Close() // it may be closed already
	}
	p.conns = nil
}
