package main

// services is the part of the list that is about what stands on the engine:
// the services, and the commands of those who run them.
var services = []mutant{
	{
		name: "payment: a fresh key for each attempt",
		file: "payment/charge.go",
		old:  `	return Charge{Key: p.ID, OrderID`,
		new:  `	return Charge{Key: p.ID + time.Now().String(), OrderID`,
		test: ". -run ^TestVirtualProviderChargesWithoutAnAnswer$",
	},
	{
		name: "order: an order may await its payment for ever",
		file: "order/watch.go",
		old:  `now.Add(-s.deadline), now)`,
		new:  `now.Add(-2*s.deadline), now)`,
		test: ". -run ^TestVirtualOrderDeadline$",
	},
	{
		name: "payment: a fresh key for every charge",
		file: "payment/charge.go",
		old:  `	return Charge{Key: p.ID, OrderID`,
		new:  `	return Charge{Key: fmt.Sprint(p.ID, "-", p.Calls), OrderID`,
		test: "./payment -run ^TestKilledAroundTheCharge$/^after_the_provider",
	},
	{
		name: "payment: charged again without a lookup",
		file: "payment/charge.go",
		old:  `		call = p.Next(sqldb.Now(), s.cfg.TTL)`,
		new:  `		call = CallCharge`,
		test: "./payment -run ^TestKilledAroundTheCharge$",
	},
	{
		name: "e-mail: another Message-ID each time",
		file: "notification/email.go",
		old:  `	msg.SetMessageIDWithValue(m.ID + "@" + messageIDDomain)`,
		new:  `	msg.SetMessageID()`,
		test: "./notification -run ^TestKilledBetweenSendingAndRecording$",
	},
	{
		name: "move: under a running system",
		file: "move.go",
		old:  `lockFile(p.file + ".lock")`,
		new:  `lockFile(p.file + ".moved")`,
		test: "./e2e -run ^TestMove$",
		env:  "KAFKA_BROKERS",
	},
	{
		name: "move: it stands though it cannot be marked",
		file: "move.go",
		old:  `func() error { return markMoved(p.file) }`,
		new:  `func() error { defer markMoved(p.file); return nil }`,
		test: ". -run ^TestNothingIsMovedWithoutItsMark$",
		env:  "DATABASE_URL",
	},
	{
		name: "topics: a process needs those of all services",
		file: "topics.go",
		old:  `	return slices.DeleteFunc(c.topics(), func(t kafka.Topic) bool { return !used[t.Name] })`,
		new:  `	return slices.DeleteFunc(c.topics(), func(t kafka.Topic) bool { return false })`,
		test: ". -run ^TestEachServiceNeedsItsOwnTopics$",
	},
	{
		name: "verify: it ends although much was too young to be asked about",
		file: "verify/verify.go",
		old:  `r.Count(InFlight) == 0 && r.young == 0 {`,
		new:  `r.Count(InFlight) == 0 {`,
		test: "./cmd/pizza -run ^TestVerify$",
	},
	{
		name: "verify: a key that lies astray passes for one that moved",
		file: "verify/raised.go",
		old:  `belonged(key, home, seen+1, count) && belongs(key, count) == later`,
		new:  `belonged(key, home, seen+1, count)`,
		test: "./verify -run ^TestKeysCrossWhenPartitionsAreAdded$",
	},
	{
		name: "verify: a dead letter is known by its key alone",
		file: "verify/letters.go",
		old:  `	add(r.Value)`,
		new:  ``,
		test: "./verify -run ^TestLettersAreKnownByAllTheySay$",
	},
	{
		name: "verify: a missing right ends it",
		file: "verify/verify.go",
		old:  `errors.Is(err, kerr.TopicAuthorizationFailed)`,
		new:  `errors.Is(err, kerr.GroupAuthorizationFailed)`,
		test: ". -run ^TestVerifyWithoutTheRightToRead$",
	},
}
