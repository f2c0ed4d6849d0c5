package kafkatest

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"pizzaflow/kafka"
)

// Guarded starts a broker with passwords and ACLs, and returns how each user reaches it: "root" may do all, and a user of
// mayRead may describe every topic and read the topics listed for it.
func Guarded(t testing.TB, mayRead map[string][]string) (as func(user string) kafka.Config) {
	t.Helper()
	const mechanism, password = "SCRAM-SHA-256", "secret"
	right := func(operation kmsg.ACLOperation, topic string) kfake.ACL {
		return kfake.ACL{Resource: kmsg.ACLResourceTypeTopic, Name: topic, Pattern: kmsg.ACLResourcePatternTypeLiteral, Operation: operation, Allow: true}
	}
	opts := []kfake.Opt{kfake.NumBrokers(1), kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser(mechanism, "root", password)}
	for user, topics := range mayRead {
		rights := []kfake.ACL{right(kmsg.ACLOperationDescribe, "*")}
		for _, topic := range topics {
			rights = append(rights, right(kmsg.ACLOperationRead, topic))
		}
		opts = append(opts, kfake.User(mechanism, user, password, rights...))
	}
	c, err := kfake.NewCluster(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return func(user string) kafka.Config {
		return kafka.Config{Brokers: c.ListenAddrs(), SASL: kafka.SASL{Mechanism: mechanism, User: user, Password: password}}
	}
}
