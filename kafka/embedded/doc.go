// Package embedded is a broker inside this process, one node, for those who run no Kafka of their own.
//
// It promises:
//
//   - a record that the [Broker] acknowledged has been handed to the disk before and is served again after kill -9.
//     Its directory is for its owner alone, is opened by one process at a time, and is repaired before it is opened:
//     torn log entries, files of forgotten topics and commits past the end of a log do not hide later ones;
//   - no request ends the broker, its memory and connections are bounded for all clients, and clients of its own process
//     ([Broker.Dialer]) are never turned away.
//
// What it does not promise: it is transport, not the system of record. After an unclean stop it may store a retried
// batch twice and take committed offsets back, so every consumer must recognise a record that it has seen. It knows no
// passwords and no encryption, and so listens on the loopback interface unless told otherwise. None of our services use
// its transactions; one that is open when it ends is aborted.
package embedded
