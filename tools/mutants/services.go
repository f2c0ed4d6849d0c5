package main

// services is the part of the list that is about what stands on the engine:
// the services, and the commands of those who run them.
var services = []mutant{
	{
		name: "payment: a fresh key for each attempt",
		old:  `	return Charge{Key: p.ID, OrderID`,
		new:  `	return Charge{Key: p.ID + time.Now().String(), OrderID`,
		test: ". -run ^TestVirtualProviderChargesWithoutAnAnswer$",
	},
	{
		name: "order: an order may await its payment for ever",
		old:  `markOverdue(ctx, s.db, s.deadline)`,
		new:  `markOverdue(ctx, s.db, 2*s.deadline)`,
		test: ". -run ^TestVirtualOrderDeadline$",
	},
	{
		name: "payment: a fresh key for every charge",
		old:  `	return Charge{Key: p.ID, OrderID`,
		new:  `	return Charge{Key: fmt.Sprint(p.ID, "-", p.Calls), OrderID`,
		test: "./payment -run ^TestKilledAroundTheCharge$/^after_the_provider",
	},
	{
		name: "payment: charged again without a lookup",
		old:  `		call = p.Next(moment.Now(), s.cfg.TTL)`,
		new:  `		call = CallCharge`,
		test: "./payment -run ^TestKilledAroundTheCharge$",
	},
	{
		name: "payment: a clock alone makes it fail",
		old:  `	return p.ChargedAt.Before(p.CreatedAt.Add(ttl))`,
		new:  `	return false`,
		test: "./payment -run ^TestTTL$",
	},
	{
		name: "payment: a call that panics keeps its permit",
		old:  `stop() record(a)`,
		new:  `stop()`,
		test: "./payment -run ^TestPermitsComeBack$",
	},
	{
		name: "notification: a clock alone has a message given up",
		old:  `	case attempts < dayOfTries:`,
		new:  `	case attempts < 1:`,
		test: "./notification -run ^TestClockIsSet$",
	},
	{
		name: "order: a key is gone when the clock was set",
		old:  `s.steady(ctx, &keys, removeAfter)`,
		new:  `s.steady(ctx, &keys, 0)`,
		test: "./order -run ^TestWhatTheClockMadeOldIsGivenTime$",
	},
	{
		name: "e-mail: another Message-ID each time",
		old:  `	msg.SetMessageIDWithValue(m.ID + "@" + messageIDDomain)`,
		new:  `	msg.SetMessageID()`,
		test: "./notification -run ^TestKilledBetweenSendingAndRecording$",
	},
	{
		name: "move: under a running system",
		old:  `filelock.Acquire(p.file + ".lock")`,
		new:  `filelock.Acquire(p.file + ".moved")`,
		test: "./e2e -run ^TestMove$",
		env:  "KAFKA_BROKERS",
	},
	{
		name: "move: it stands though it cannot be marked",
		old:  `func() error { return markMoved(p.file) }`,
		new:  `func() error { defer markMoved(p.file); return nil }`,
		test: "./ops -run ^TestNothingIsMovedWithoutItsMark$",
		env:  "DATABASE_URL",
	},
	{
		name: "topics: a process needs those of all services",
		old:  `	return slices.DeleteFunc(c.topics(), func(t kafka.Topic) bool { return !used[t.Name] })`,
		new:  `	return slices.DeleteFunc(c.topics(), func(t kafka.Topic) bool { return false })`,
		test: ". -run ^TestEachServiceNeedsItsOwnTopics$",
	},
	{
		name: "verify: it ends although much was too young to be asked about",
		old:  `r.Count(InFlight) == 0 && r.young == 0 {`,
		new:  `r.Count(InFlight) == 0 {`,
		test: "./cmd/pizza -run ^TestVerify$",
	},
	{
		name: "verify: a key that lies astray passes for one that moved",
		old:  `belonged(key, first, highestUsed+1, now) && partitionOf(key, now) == other`,
		new:  `belonged(key, first, highestUsed+1, now)`,
		test: "./verify -run ^TestKeysChangePartitionWhenPartitionsAreAdded$",
	},
	{
		name: "verify: a dead letter is known by its key alone",
		old:  `	add(r.Value)`,
		new:  ``,
		test: "./verify -run ^TestDeadLettersAreIdentifiedByAllTheirBytes$",
	},
	{
		name: "verify: a missing right ends it",
		old:  `errors.Is(err, kerr.TopicAuthorizationFailed) { missing`,
		new:  `errors.Is(err, kerr.GroupAuthorizationFailed) { missing`,
		test: ". -run ^TestVerifyWithoutTheRightToRead$",
	},
	{
		name: "logs: what is repeated is logged each time",
		old:  `	if seen.logged < max(1, about.limit) {`,
		new:  `	if seen.logged < max(1, about.limit) || r.Level == slog.LevelWarn {`,
		test: "./logs -run ^TestRepeatedLinesAreCounted$",
	},
	{
		name: "logs: errors in words tell lines apart",
		old:  `[]string{"err", "error", "detail", "stack"}`,
		new:  `[]string{"err", "detail", "stack"}`,
		test: "./logs -run ^TestWhatTellsLinesApart$",
	},
	{
		name: "ready: a full disk takes what small writes find room for",
		old:  `"SELECT count(*) FROM generate_series(1, %d);`,
		new:  `"SELECT count(*) FROM generate_series(1, %d / 100000);`,
		test: "./sqldb -run ^TestCheckWritesOnAFullDisk$/^postgres$",
	},
	{
		name: "ready: a locked table is not tried",
		old:  `		fmt.Fprintf(&script, "%s; ROLLBACK TO nothing;", insert)`,
		new:  `		_ = insert`,
		test: "./sqldb -run ^TestCheckWritesMeetsLocks$/^postgres$",
	},
	{
		name: "ready: what the intake met is forgotten",
		old:  `	g.last.record(err)`,
		new:  `	g.last.record(nil)`,
		test: "./sqldb -run ^TestCheckWritesHearsOfFlushes$",
	},
	{
		name: "stop: a goroutine that hangs is waited for",
		old:  `			timeIsUp = true`,
		new:  `			timeIsUp = len(running) == 0`,
		test: ". -run ^TestNothingHoldsTheStopUp$",
	},
	{
		name: "stop: requests are refused before anybody can notice",
		old:  `	p.awaitGrace()`,
		new:  ``,
		test: "./e2e -run ^TestRequestsAreTakenWhileItStops$",
	},
	{
		name: "start: HTTP_ADDR is not served before the databases are there",
		old:  `p.startListeners, p.startSandbox, p.startBroker, p.startFrontend, p.startServices,`,
		new:  `p.startSandbox, p.startBroker, p.startFrontend, p.startServices, p.startListeners,`,
		test: "./e2e -run ^TestStartWithTheDatabaseAway$/^hangs",
	},
	{
		name: "order: marks that cannot be counted are shown as they were",
		old:  `			s.metrics.attention.Reset()`,
		new:  `			_ = 0`,
		test: "./order -run ^TestMarksAreShownWhenCounted$",
	},
	{
		name: "metrics: what cannot be found out is not counted",
		old:  `	m.errors.Inc()`,
		new:  ``,
		test: ". -run ^TestMetricsWithoutTheDatabase$",
	},
}
