package gatewayredis

import (
	"context"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
)

const scope = "github.com/seed-96248d0c/gateway/gatewayredis"

// reporter tells operators whether Redis decides.
type reporter struct {
	name      string
	logger    *slog.Logger // nil: slog.Default()
	fallbacks metric.Int64Counter
	changes   metric.Int64Counter
	own       []metric.AddOption
	away      []metric.AddOption
	back      []metric.AddOption
}

func newReporter(limiter string, o *Options) reporter {
	provider := o.Meter
	if provider == nil {
		provider = otel.GetMeterProvider()
	}
	meter := provider.Meter(scope)
	set := func(kvs ...attribute.KeyValue) []metric.AddOption {
		return []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(kvs...))}
	}
	name := attribute.String("gateway.limiter", limiter)
	return reporter{
		name: limiter, logger: o.Logger,
		fallbacks: counter(meter, "gateway.redis.fallbacks", "Decisions of limiters without Redis.", "{decision}"),
		changes:   counter(meter, "gateway.redis.changes", "Changes between deciding with and without Redis.", "{change}"),
		own:       set(name),
		away:      set(name, attribute.String("gateway.redis.state", "away")),
		back:      set(name, attribute.String("gateway.redis.state", "back")),
	}
}

func counter(m metric.Meter, name, description, unit string) metric.Int64Counter {
	c, err := m.Int64Counter(name, metric.WithDescription(description), metric.WithUnit(unit))
	if err != nil || c == nil {
		otel.Handle(err)
		return noop.Int64Counter{}
	}
	return c
}

func (r *reporter) fallback() { r.fallbacks.Add(context.Background(), 1, r.own...) }

// change reports an outage, or with back the end of one.
func (r *reporter) change(o *outage, of gateways, back bool) {
	logger := r.logger
	if logger == nil {
		logger = slog.Default()
	}
	ctx := context.Background()
	limiter := slog.String("limiter", r.name)
	if back {
		r.changes.Add(ctx, 1, r.back...)
		logger.LogAttrs(ctx, slog.LevelInfo, "gatewayredis: Redis is back", limiter, slog.Duration("after", time.Since(o.since)))
		return
	}
	r.changes.Add(ctx, 1, r.away...)
	logger.LogAttrs(ctx, slog.LevelWarn, "gatewayredis: Redis is away, and limits are local", limiter,
		slog.String("error", o.err.Error()), slog.Int("gateways", of.count))
}
