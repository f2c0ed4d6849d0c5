package embedded_test

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"pizzaflow/kafka/embedded"
	"pizzaflow/kafka/kafkatest"
)

// request is a frame with the given size, kind and version, and rest behind them.
func request(size uint32, kind, version uint16, rest string) []byte {
	b := binary.BigEndian.AppendUint32(nil, size)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint16(b, version)
	return append(b, rest...)
}

func TestInvalidRequestsDoNotHurtTheBroker(t *testing.T) {
	config, _ := open(t, embedded.Config{Dir: t.TempDir()})
	kafkatest.Ensure(t, config, single())
	for name, bytes := range map[string][]byte{
		"a browser":        []byte("GET / HTTP/1.1\r\nHost: localhost:9092\r\n\r\n"),
		"an unknown kind":  request(10, 0x7fff, 0, "abcdef"),
		"a negative kind":  request(10, 0xffff, 0, "abcdef"),
		"no room for more": request(4, 18, 0, ""),
		"nothing":          {0, 0, 0, 0, 0, 0, 0, 0},
		"two gigabytes":    request(1<<31-1, 0, 9, "abcdef"),
		"four gigabytes":   request(1<<32-1, 0, 9, "abcdef"),
		"a broken produce": request(14, 0, 9, "abcdefghij"),
		"a broken version": request(14, 18, 0x7fff, "abcdefghij"),
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", config.Brokers[0])
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(bytes); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection was left open")
			}
		})
	}
	kafkatest.Produce(t, kafkatest.Client(t, config), "order-events", "still here")
	if got := read(t, config); !slices.Equal(got, []string{"still here"}) {
		t.Errorf("records: %q", got)
	}
}

func TestAllInterfacesAreAdvertisedByName(t *testing.T) {
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	config, _ := open(t, embedded.Config{Dir: t.TempDir(), Listen: "0.0.0.0:0"})
	if host, _, err := net.SplitHostPort(config.Brokers[0]); err != nil || host != name {
		t.Fatalf("advertised as %s, want the name %s", config.Brokers[0], name)
	}
	if _, err := net.LookupHost(name); err != nil {
		t.Log("the name of this machine does not resolve, so no client can connect by it:", err)
		return
	}
	kafkatest.Ensure(t, config, single())
	kafkatest.Produce(t, kafkatest.Client(t, config), "order-events", "a")
}

// manyConnections is twice as many as the broker keeps of untrusted clients.
const manyConnections = 2 * 512

func TestClosedConnectionsMakeRoom(t *testing.T) {
	config, _ := open(t, embedded.Config{Dir: t.TempDir()})
	kafkatest.Ensure(t, config, single())
	for range manyConnections {
		conn, err := net.Dial("tcp", config.Brokers[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
	kafkatest.Ensure(t, config, single())
}
