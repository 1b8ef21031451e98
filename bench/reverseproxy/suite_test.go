package httputil

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
)

// differences are the tests of httputil.ReverseProxy that fail against Proxy, and which documented difference is why.
var differences = map[string]string{
	"TestXForwardedFor": "what a client sends as X-Forwarded-For is dropped, unless its address is in TrustProxies",
	"TestReverseProxyRewriteStripsForwarded": "Proxy writes X-Forwarded-For, -Host and -Proto itself, and does not leave it to Rewrite; " +
		"the client's are gone",
	"TestReverseProxyQueryParameterSmugglingDirectorDoesNotParseForm": "parameters that Go cannot parse are dropped unless KeepQuery is set, " +
		"whoever else has parsed the form",
	"TestReverseProxyResponseControllerFlushInterval": "a small response that arrives whole is sent in one write, by the end of the handler " +
		"and without a Flush",
	"TestReverseProxy_CopyBuffer":     "the client gets what arrived before the target broke off: Get succeeds, and reading the body fails",
	"TestReverseProxyGetPutBuffer":    "there is no BufferPool to set: the buffers are pooled in any case",
	"TestSelectFlushInterval/default": "there is no FlushInterval to set: each part is sent as it arrives",
	"TestSingleJoinSlash":             "it is about a function of httputil; what an Upstream does with the paths of targets is in TestJoinURLPath",
}

// differencesOf is the release of Go whose tests differences is about. Another release may have other tests: there, what
// does not fit the table is logged.
const differencesOf = "go1.26.8"

// TestSuiteOfReverseProxy runs the tests of httputil.ReverseProxy against Proxy, over both transports. The file with
// the tests is copied out of the Go source tree, with one import replaced. All pass but those in differences, and
// each of those fails: one that passes has to leave the table.
func TestSuiteOfReverseProxy(t *testing.T) {
	s := buildSuite(t)
	unexpected := (*testing.T).Errorf
	if runtime.Version() != differencesOf {
		t.Logf("the table is for %s, this is %s", differencesOf, runtime.Version())
		unexpected = (*testing.T).Logf
	}
	for transport, env := range map[string]string{"NewTransport": overStandard + "=", "net/http": overStandard + "=1"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			var listed []string
			for name, why := range differences {
				listed = append(listed, exactly(name))
				// By itself, as it may take others with it.
				if verdicts, output := s.run(t, env, "-test.run="+exactly(name)); verdicts[name] != "FAIL" {
					unexpected(t, "%s does not fail any more (%s): %q\n%s", name, why, verdicts[name], output)
				}
			}
			slices.Sort(listed)
			verdicts, output := s.run(t, env, "-test.skip="+strings.Join(listed, "|"))
			for _, name := range s.tests {
				_, isListed := differences[name]
				if verdict := verdicts[name]; verdict != "PASS" && !isListed {
					unexpected(t, "%s: %q", name, verdict)
				}
			}
			if t.Failed() {
				t.Logf("%s", output)
			}
		})
	}
}

// exactly is a pattern for flags of the test binary that matches name alone.
func exactly(name string) string {
	return "^" + strings.ReplaceAll(name, "/", "$/^") + "$"
}

// suite is the test binary.
type suite struct {
	binary string
	tests  []string // on the top level
}

// buildSuite compiles the tests together with the shim. It skips the test where their source is not there.
func buildSuite(t *testing.T) *suite {
	t.Helper()
	found, err := exec.Command("go", "list", "-f", "{{.Dir}}", "net/http/httputil").Output()
	if err != nil {
		t.Skipf("There is no go command that finds net/http/httputil: %v", err)
	}
	source, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(found)), "reverseproxy_test.go"))
	if err != nil {
		t.Skipf("This Go has no source of its tests: %v", err)
	}
	dir := t.TempDir()
	// Nobody else may import this one; the shim has what is used of it.
	source = []byte(strings.Replace(string(source), "\t\"net/http/internal/ascii\"\n", "", 1))
	theirs, overlay := filepath.Join(dir, "reverseproxy_test.go"), filepath.Join(dir, "overlay.json")
	here, err := filepath.Abs("suite_test.go")
	if err != nil {
		t.Fatal(err)
	}
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {here: theirs}})
	if err != nil {
		t.Fatal(err)
	}
	for path, data := range map[string][]byte{theirs: source, overlay: replace} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := &suite{binary: filepath.Join(dir, "suite.test")}
	args := []string{"test", "-c", "-overlay", overlay, "-o", s.binary}
	if raceEnabled() {
		args = append(args, "-race")
	}
	if output, err := exec.Command("go", append(args, ".")...).CombinedOutput(); err != nil {
		t.Fatalf("The shim does not fit the tests of this Go: %v\n%s", err, output)
	}
	list, err := exec.Command(s.binary, "-test.list=^Test").Output()
	if err != nil {
		t.Fatal(err)
	}
	if s.tests = strings.Fields(string(list)); len(s.tests) < 40 {
		t.Fatalf("%d tests: %s", len(s.tests), list)
	}
	return s
}

// raceEnabled reports whether this test runs with the race detector.
func raceEnabled() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

var verdictLine = regexp.MustCompile(`(?m)^ *--- (PASS|FAIL|SKIP): (\S+) `)

// run returns the verdict on each test and subtest that the flag selects, and what they printed. A test that did not
// come to its end has none.
func (s *suite) run(t *testing.T, env, flag string) (verdicts map[string]string, output []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.binary, "-test.v", "-test.timeout=4m", flag)
	cmd.Env = append(os.Environ(), env)
	output, err := cmd.CombinedOutput()
	verdicts = make(map[string]string)
	for _, m := range verdictLine.FindAllSubmatch(output, -1) {
		verdicts[string(m[2])] = string(m[1])
	}
	if err != nil && len(output) == 0 {
		t.Error(err)
	}
	return verdicts, output
}
