// Package gatewayredis shares limits and the news of circuits between gateways, through Redis or Valkey.
//
// A limiter of package gateway counts in its own process: with four gateways, a limit of 100 a second is 400. A limiter of
// this package counts in Redis, so that the limit holds for all gateways together. It is a gateway.Limiter, and takes the
// place of one:
//
//	client := redis.NewUniversalClient(&redis.UniversalOptions{
//		Addrs: []string{"redis:6379"}, ContextTimeoutEnabled: true,
//	})
//	perUser := gatewayredis.NewTokenBucket(client, 100, 200, nil)
//	rt.Use(gateway.RateLimit(perUser, gateway.KeyBySubject, nil))
//
// The client can be of a single server, of Sentinel or of a Cluster. Redis 5 or later is needed, or Valkey. The package
// github.com/seed-96248d0c/gateway/examples/cluster is a whole program.
//
// # Decisions
//
// Each decision is one script on one key, in which Redis does nothing else: it is exact however many gateways ask at the
// same time. Only Redis' clock counts. The decisions are those of the limiters in package gateway, with all their fields,
// at a resolution of a microsecond. Concurrent decisions of a gateway share round trips.
//
// With Options.Lease, a gateway takes several units at once, and spends most without a round trip.
//
// # While Redis is away
//
// A decision waits for Redis for at most Options.Timeout, 50ms by default. When an answer is late, is an error (of a
// replica that cannot write, of a full memory, of a Cluster without its slots) or is nonsense, Redis counts as away. From
// then on, decisions do not ask it. They are made by Options.Fallback, which is by default a limiter in memory with this
// gateway's share of the limit: a limit of 100 is 25 in each of four gateways. The share is at least one unit. A cost above
// the share waits for the whole of it, and the rest is owed.
//
// For that, each gateway that takes decisions notes itself in Redis every two seconds; one that was not seen for ten seconds
// has no share. A gateway that has not reached Redis since it started knows of no other, and has the whole limit.
//
// One goroutine asks Redis every 100ms whether it works again, and ends when no decision has been asked for in a second. So
// a limiter needs no Close. Its decisions are Redis' again at the first good answer. When Redis comes back without
// its data, all keys have their whole allowance. A failover loses what the new master had not seen.
//
// A client of go-redis may hang for longer than a decision may take, but the decision does not: it is at most four
// goroutines that hang, until the client gives up. With ContextTimeoutEnabled the client gives up at once, which is better.
// One limiter has one such state for all its keys, also in a Cluster: while a master is away, all keys are decided locally.
//
// # Keys and memory
//
// A key in Redis is named after the prefix, the algorithm, its parameters and the limited key:
//
//	gateway:token:100:200:{alice}
//
// So limiters with different parameters never share a budget, and those with the same do. The limited key is the hash tag.
// One that is longer than 64 bytes is stored as its SHA-256. A key of that length costs 104 bytes in Redis 7 (MEMORY USAGE),
// of which the state is 16 and, of a sliding window, 24. It expires when its state is that of a new key. So set
// maxmemory-policy to noeviction: when memory is full, Redis then counts as away, and no key is forgotten.
package gatewayredis
