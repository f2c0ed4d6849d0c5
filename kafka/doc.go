// Package kafka is how the system reaches Kafka: what every client needs to connect, and the topics.
//
// It promises:
//
//   - a [Config] that passes Validate yields client options with deadlines on every dial and request;
//   - nothing is sent in clear to another machine, be it configured or told of by the cluster, unless
//     Config.Plaintext allows it;
//   - [EnsureTopics] creates the topics that are missing, never alters one that exists, and returns only when every
//     partition has a leader, so that the first record after it does not wait for metadata; [PlanTopics] and
//     [ApplyTopics] are for a person who wants more, and who is told what it costs.
//
// For those who run no Kafka of their own there is an embedded broker, in the package embedded.
package kafka
