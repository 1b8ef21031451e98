package gateway

// Stands in for what is being built.

type Circuit struct{}

func (c *Circuit) Allow() (done func(Outcome, int), err error) { return func(Outcome, int) {}, nil }

func sameField(a, b string) bool {
	i, j := 0, 0
	for {
		for i < len(a) && foldByte(a[i]) == 0 {
			i++
		}
		for j < len(b) && foldByte(b[j]) == 0 {
			j++
		}
		if i == len(a) || j == len(b) {
			return i == len(a) && j == len(b)
		}
		if foldByte(a[i]) != foldByte(b[j]) {
			return false
		}
		i++
		j++
	}
}

func claimText(id *Identity, claim string) (string, bool) { return id.Subject, id.Subject != "" }
