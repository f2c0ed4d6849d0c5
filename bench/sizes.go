package main

import "time"

// A size says how much is measured.
type size struct {
	rounds     int           // of what is cheap enough to repeat; the median counts
	backlog    int           // events to drain
	aggregates int           // they belong to
	slow       int           // events for those who relay a few thousand a second at most
	box        time.Duration // how long a drain may take that will not end
	latency    time.Duration // of each rate
	intake     time.Duration
	records    int           // for the consumers
	consume    time.Duration // how long they have
	chain      time.Duration
	flow       time.Duration // of the whole flow at 50, 100 and 500 orders a second
	catchUp    time.Duration // how long what was begun may take to end
	peers      bool          // Debezium too, whose jars Maven must fetch
}

func sizes() map[string]size {
	return map[string]size{
		"full": {
			rounds: 3, backlog: 1_000_000, aggregates: 50_000, slow: 40_000, box: 6 * time.Second,
			latency: 8 * time.Second, intake: 4 * time.Second, records: 200_000, consume: 10 * time.Second,
			chain: 10 * time.Second, flow: 12 * time.Second, catchUp: 30 * time.Second, peers: true,
		},
		"quick": {
			rounds: 1, backlog: 200_000, aggregates: 10_000, slow: 20_000, box: 4 * time.Second,
			latency: 4 * time.Second, intake: 2 * time.Second, records: 40_000, consume: 4 * time.Second,
			chain: 4 * time.Second, flow: 5 * time.Second, catchUp: 15 * time.Second, peers: true,
		},
		"tiny": {
			rounds: 1, backlog: 3_000, aggregates: 200, slow: 1_000, box: time.Second,
			latency: 1500 * time.Millisecond, intake: 500 * time.Millisecond, records: 1_000, consume: 5 * time.Second,
			chain: time.Second, flow: time.Second, catchUp: 20 * time.Second,
		},
	}
}
