package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	findTimeout  = 10 * time.Second // of one call of find
	firstFindGap = time.Second      // pause after a first failure; doubled after each further one
	maxFound     = 1000             // largest number of targets that DNS finds
)

// Follow calls find at the interval every, and sets the targets of u to those that find returns, until ctx
// ends. It then returns ctx.Err(). It blocks, so call it on its own goroutine:
//
//	find, err := gateway.DNS("http://users.internal:8080", nil)
//	if err != nil {
//		log.Fatal(err)
//	}
//	users := gateway.NewUpstream("users", nil, nil)
//	go users.Follow(ctx, find, 10*time.Second)
//
// Follow first calls find at once. The pauses vary by a tenth, so that many gateways do not call at the same
// moment. If find returns an error, no targets, or targets on which SetTargets panics, the last targets stay.
// Follow then calls find again after one second, two, four, and so on, up to every. A panic of find counts as
// an error. A target that stays keeps its connections, its health and its requests in flight, as with
// SetTargets.
//
// slog.Default logs when the targets change, when find begins to fail (as an error), and when it succeeds
// again. The context of find ends after 10 seconds: find must return soon after that.
//
// Until find has succeeded once, the targets are those that NewUpstream or the last SetTargets was given.
// Follow panics when find is nil or every is not positive.
func (u *Upstream) Follow(ctx context.Context, find func(context.Context) ([]Target, error), every time.Duration) error {
	if find == nil || every <= 0 {
		panic("gateway: Upstream.Follow: nil function, or an interval that is not positive")
	}
	every = min(every, math.MaxInt64/2) // leaves room for the variation
	gap := min(firstFindGap, every)
	failed := 0
	for ctx.Err() == nil {
		err := u.findOnce(ctx, find)
		if ctx.Err() != nil {
			break
		}
		pause := every
		if err != nil {
			if failed++; failed == 1 {
				slog.Default().LogAttrs(ctx, slog.LevelError, "gateway: no targets found, the last ones are kept",
					slog.String("upstream", u.name), slog.Int("targets", len(u.pool.targets())), slog.String("error", bounded(err.Error())))
			}
			pause, gap = gap, min(2*gap, every)
		} else {
			if failed > 0 {
				slog.Default().LogAttrs(ctx, slog.LevelInfo, "gateway: targets are found again",
					slog.String("upstream", u.name), slog.Int("failures", failed))
			}
			failed, gap = 0, min(firstFindGap, every)
		}
		timer := time.NewTimer(pause - pause/20 + rand.N(pause/10+1))
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
	return ctx.Err()
}

// findOnce calls find, and replaces the targets of u if they have changed.
func (u *Upstream) findOnce(ctx context.Context, find func(context.Context) ([]Target, error)) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = logPanic("the function of Upstream.Follow panicked", p, slog.String("upstream", u.name))
		}
	}()
	limited, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	targets, err := find(limited)
	switch {
	case err != nil:
		return err
	case len(targets) == 0:
		return errors.New("the list of targets is empty")
	}
	if err := checkTargets(targets); err != nil {
		return err
	}
	before := u.pool.targets()
	if ctx.Err() != nil || slices.Equal(targetNames(before), targetNames(targets)) {
		return nil
	}
	u.pool.replace(targets)
	slog.Default().LogAttrs(ctx, slog.LevelInfo, "gateway: the targets have changed",
		slog.String("upstream", u.name), slog.Int("targets", len(targets)),
		slog.String("added", missingFrom(before, targets)), slog.String("removed", missingFrom(targets, before)))
	return nil
}

// targetNames returns the URL and weight of each target, sorted. Two lists of targets with equal targetNames
// differ at most in their order.
func targetNames(targets []Target) []string {
	all := make([]string, len(targets))
	for i, t := range targets {
		all[i] = t.URL.String() + " " + strconv.Itoa(max(1, t.Weight))
	}
	slices.Sort(all)
	return all
}

// missingFrom returns the URLs of the targets that are not in list, for the log.
func missingFrom(list, targets []Target) string {
	known := make(map[string]bool, len(list))
	for _, t := range list {
		known[t.URL.String()] = true
	}
	var missing []string
	for _, t := range targets {
		if link := t.URL.String(); !known[link] {
			missing = append(missing, link)
		}
	}
	return bounded(strings.Join(missing, " "))
}

// DNS returns a function for Upstream.Follow that finds targets by DNS. There is one target for each A
// and AAAA record of rawURL's host: "http://users.internal:8080/v1" becomes "http://10.0.0.7:8080/v1",
// and so on. A nil resolver means net.DefaultResolver.
//
// If the host begins with an underscore, as in "http://_http._tcp.users.internal", its SRV records (RFC
// 2782) are looked up. Each address of a record's host is a target, with the record's port and weight. If a
// host has several addresses, they share the weight. Records with the lowest priority number are used. If
// none of them has an address, those with the next number are used, and so on.
//
// The function returns an error if there are no addresses, if there are more than 1,000, and if the lookup of
// a host in the SRV records fails. It skips hosts that do not exist, and addresses that no server can have,
// such as 0.0.0.0. It sorts the targets, so the order of the records does not matter.
//
// The URL of a target contains an address, not a name. So the Host that is sent is the address, unless
// PreserveHost or Rewrite sets another. For https, set TransportOptions.TLS with the ServerName in the
// targets' certificates.
//
// DNS returns an error for a URL that ParseTargets does not accept, for the scheme unix, and for a URL with
// both a host that begins with an underscore and a port.
func DNS(rawURL string, resolver *net.Resolver) (func(context.Context) ([]Target, error), error) {
	link, err := parseTarget(rawURL)
	if err != nil {
		return nil, fmt.Errorf("gateway: DNS: %w", err)
	}
	d := &dnsFinder{url: *link, own: resolver}
	switch byService := strings.HasPrefix(d.url.Host, "_"); {
	case d.url.Scheme == schemeUnix:
		return nil, fmt.Errorf("gateway: DNS: %q has no host", rawURL)
	case byService && d.url.Port() != "":
		return nil, fmt.Errorf("gateway: DNS: %q: must not have a port, because the SRV records have it", rawURL)
	case byService:
		return d.byService, nil
	}
	return d.byHost, nil
}

// dnsFinder finds targets by DNS.
type dnsFinder struct {
	url url.URL
	own *net.Resolver // nil means net.DefaultResolver
}

func (d *dnsFinder) resolver() *net.Resolver { return cmp.Or(d.own, net.DefaultResolver) }

// byHost finds the addresses of the URL's host.
func (d *dnsFinder) byHost(ctx context.Context) ([]Target, error) {
	addrs, err := d.lookup(ctx, d.url.Hostname())
	if err != nil {
		return nil, err
	}
	return d.targets([]service{{addrs: addrs, port: d.url.Port(), weight: 1}})
}

// byService finds the addresses of the hosts in the SRV records.
func (d *dnsFinder) byService(ctx context.Context) ([]Target, error) {
	_, records, err := d.resolver().LookupSRV(ctx, "", "", d.url.Hostname())
	switch {
	case len(records) == 0 && err != nil: // with records, err says that others were malformed
		return nil, err
	case len(records) > maxFound:
		return nil, tooMany(len(records))
	}
	slices.SortFunc(records, func(a, b *net.SRV) int { return cmp.Compare(a.Priority, b.Priority) })
	for len(records) > 0 {
		n := 1
		for n < len(records) && records[n].Priority == records[0].Priority {
			n++
		}
		services, err := d.lookupAll(ctx, records[:n])
		if err != nil {
			return nil, err
		}
		if len(services) > 0 {
			return d.targets(services)
		}
		records = records[n:]
	}
	return nil, fmt.Errorf("the SRV records of %s point to no address", d.url.Hostname())
}

// service is an SRV record with the addresses of its host.
type service struct {
	addrs  []netip.Addr // at least one
	port   string
	weight int
}

// maxLookups is the number of hosts that are looked up at the same time.
const maxLookups = 8

// lookupAll looks up the hosts of records, and returns the records whose hosts have addresses. It returns an
// error if a lookup fails for another reason than that the host does not exist or has no address.
func (d *dnsFinder) lookupAll(ctx context.Context, records []*net.SRV) ([]service, error) {
	type answer struct {
		addrs []netip.Addr
		err   error
	}
	answers := make(map[string]*answer)
	slots := make(chan struct{}, maxLookups)
	var all sync.WaitGroup
	for _, r := range records {
		if answers[r.Target] != nil || r.Target == "." { // "." means that the service is not offered (RFC 2782)
			continue
		}
		a := new(answer)
		answers[r.Target] = a
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			a.addrs, a.err = d.lookup(ctx, r.Target)
		})
	}
	all.Wait()
	var services []service
	for _, r := range records {
		a := answers[r.Target]
		var unknown *net.DNSError
		switch {
		case a == nil || errors.Is(a.err, errNoAddress) || errors.As(a.err, &unknown) && unknown.IsNotFound || r.Port == 0:
		case a.err != nil:
			return nil, a.err
		default:
			services = append(services, service{a.addrs, strconv.Itoa(int(r.Port)), max(1, int(r.Weight))})
		}
	}
	return services, nil
}

var errNoAddress = errors.New("no address")

// lookup returns the addresses of a host: at least one, or an error.
func (d *dnsFinder) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	found, err := d.resolver().LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	addrs := found[:0]
	for _, a := range found {
		if a = a.Unmap(); !a.IsUnspecified() && !a.IsMulticast() && a != broadcast && !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	switch {
	case len(addrs) == 0:
		return nil, fmt.Errorf("%s has %w that a server can have", host, errNoAddress)
	case len(addrs) > maxFound:
		return nil, tooMany(len(addrs))
	}
	return addrs, nil
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func tooMany(n int) error {
	return fmt.Errorf("the answer has %d records, more than %d", n, maxFound)
}

// targets returns the targets for services, sorted and without duplicates.
func (d *dnsFinder) targets(services []service) ([]Target, error) {
	scale := 1
	for _, s := range services {
		if len(s.addrs) > 1 && len(services) > 1 {
			scale = 12 // divisible by 2, 3 and 4, so that the addresses of a host can share its weight exactly
		}
	}
	weights := make(map[netip.Addr]map[string]int)
	total := 0
	for _, s := range services {
		share := s.weight
		if len(services) > 1 {
			share = max(1, s.weight*scale/len(s.addrs))
		}
		for _, a := range s.addrs {
			if weights[a] == nil {
				weights[a] = make(map[string]int)
			}
			if weights[a][s.port] == 0 {
				total++
			}
			weights[a][s.port] = min(maxWeight, weights[a][s.port]+share)
		}
	}
	if total > maxFound {
		return nil, tooMany(total)
	}
	targets := make([]Target, 0, total)
	for a, ports := range weights {
		for port, weight := range ports {
			targets = append(targets, Target{URL: d.at(a, port), Weight: weight})
		}
	}
	slices.SortFunc(targets, func(a, b Target) int { return cmp.Compare(a.URL.Host, b.URL.Host) })
	return targets, nil
}

// at returns the URL with an address in place of the host. An empty port means the default of the scheme.
func (d *dnsFinder) at(a netip.Addr, port string) *url.URL {
	link := d.url
	switch {
	case port != "":
		link.Host = net.JoinHostPort(a.String(), port)
	case a.Is6():
		link.Host = "[" + a.String() + "]"
	default:
		link.Host = a.String()
	}
	return &link
}
