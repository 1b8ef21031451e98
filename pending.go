package gateway

// Stands in for what is being built.

type Circuit struct{}

func (c *Circuit) Allow() (done func(Outcome, int), err error) { return func(Outcome, int) {}, nil }
