package main

// The tests that notice, by what they need.
const (
	simulation = "./outbox -run ^TestSimulation$"
	cursor     = "./outbox -run ^TestCursorMissesNothing$"
)

// mutants is the list: one protection taken out at a time.
var mutants = []mutant{
	{
		name: "offsets: commit the highest instead of the low-water mark",
		file: "outbox/dispatch.go",
		old:  `	for n < len(p.window) && p.window[n].done {`,
		new:  `	for n < len(p.window) && (p.window[n].done || p.window[len(p.window)-1].done) {`,
		test: simulation,
	},
	{
		name: "inbox: every event is new",
		file: "outbox/settle.go",
		old:  `			case !fresh[in.id]:`,
		new:  `			case false && !fresh[in.id]:`,
		test: simulation,
	},
	{
		name: "parked: a follower overtakes its head",
		file: "outbox/settle.go",
		old:  `			case in.rec.Key != nil && parkedKeys[in.key]:`,
		new:  `			case false && parkedKeys[in.key]:`,
		test: simulation,
	},
	{
		name: "cursor: the floor passes rows in flight",
		file: "outbox/cursor.go",
		old:  `		f = min(f, c.inFlight[0].lo-1)`,
		new:  `		f = min(f, c.head)`,
		test: cursor,
	},
}
