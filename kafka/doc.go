// Package kafka is how the system reaches Kafka: what every client needs to connect, the topics, and the
// embedded broker for those who run no Kafka of their own.
//
// It promises:
//
//   - a [Config] that passes Validate yields client options with deadlines on every dial and request;
//   - nothing is sent in clear to another machine, be it configured or told of by the cluster, unless
//     Config.Plaintext allows it;
//   - [EnsureTopics] creates what is missing, never alters what is there, and returns only when every
//     partition has a leader, so that the first record after it does not wait for metadata; [PlanTopics] and
//     [ApplyTopics] are for a person who wants more, and who is told what it costs;
//   - a record that the embedded [Broker] acknowledged has been handed to the disk before and is served again
//     after kill -9. Its directory is for its owner alone, is opened by one process at a time, and is mended
//     before it is opened: torn log entries, files of forgotten topics and commits past the end of a log do
//     not hide later ones;
//   - no request ends the embedded broker, its memory and connections are bounded whoever asks, and clients of its
//     own process ([Broker.Dialer]) are never turned away.
//
// What it does not promise: the embedded broker is transport, not the system of record. After an unclean stop
// it may store a retried batch twice and take committed offsets back, so every consumer must recognise a
// record that it has seen. It knows no passwords and no encryption, and so listens on the loopback interface
// unless told otherwise. Nothing of ours uses its transactions; one that is open when it ends is aborted.
package kafka
