package h1

import (
	"go/build"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// Reasons why a behavior of net/http's transport does not apply to this package.
const (
	noHTTP2  = "-: HTTP/2 is left to net/http"
	noProxy  = "-: there is no proxy in front of the target"
	noGzip   = "-: nothing is decompressed"
	noOption = "-: there is no such option"
	inside   = "-: it is about names inside net/http"
)

// behaviours maps each test of net/http's transport to the tests here that check the same: tests of this
// package, or of the root package with the prefix "gateway.". "-:" is followed by the reason why there is
// none.
var behaviours = map[string]string{
	// Connections: reuse and limits.
	"TestReuseRequest":                                          "TestRequestIsUsedAgain",
	"TestTransportKeepAlives":                                   "TestReuse TestNoIdleConnections",
	"TestTransportConnectionCloseOnResponse":                    "TestReuse",
	"TestTransportConnectionCloseOnRequest":                     "TestReuse TestWhatIsSent",
	"TestTransportConnectionCloseOnRequestDisableKeepAlive":     "TestReuse TestNoIdleConnections",
	"TestTransportRespectRequestWantsClose":                     "TestReuse TestWhatIsSent",
	"TestTransportIdleCacheKeys":                                "TestTargetOfURL TestIdleTimeout",
	"TestTransportReadToEndReusesConn":                          "TestWaysToReadABody TestCloseEarly",
	"TestTransportMaxPerHostIdleConns":                          "TestIdleConnectionsAreAStack",
	"TestTransportMaxConnsPerHostIncludeDialInProgress":         "TestMaxPerHost TestSlotOfCanceledWaiterIsPassedOn",
	"TestTransportMaxConnsPerHost":                              "TestMaxPerHost",
	"TestTransportMaxConnsPerHostDialCancellation":              "TestSlotOfCanceledWaiterIsPassedOn TestCancel",
	"TestTransportMaxIdleConns":                                 "-: MaxIdlePerHost is the only bound; the targets are the operator's, and so few",
	"TestTransportRemovesDeadIdleConnections":                   "TestDeadIdleConnections",
	"TestTransportServerClosingUnexpectedly":                    "TestDeadIdleConnections TestSurprisingCloses",
	"TestStressSurpriseServerCloses":                            "TestSurprisingCloses",
	"TestTransportReuseConnEmptyResponseBody":                   "TestReuse TestEmptyResponsesNeedNoClose",
	"TestTransportIdleConnTimeout":                              "TestIdleTimeout",
	"TestTransportRemovesConnsAfterIdle":                        "TestIdleTimeout",
	"TestTransportRemovesConnsAfterBroken":                      "TestDeadIdleConnections TestEarlyCloseAtEveryByte",
	"TestTransportIdleConnRacesRequest":                         "TestHangingCloseHoldsUpNobody",
	"TestTransportCloseIdleConnsThenReturn":                     "TestCloseIdleConnectionsInUse",
	"TestTransportIdleConnCrash":                                "TestCloseIdleConnectionsInUse",
	"TestIdleConnChannelLeak":                                   "TestIdleConnectionsAreAStack TestCloseEarly",
	"TestTransportPersistConnLeak":                              "TestMaxPerHost",
	"TestTransportPersistConnLeakShortBody":                     "TestWrongBodies",
	"TestTransportPersistConnLeakNeverIdle":                     "TestEmptyResponsesNeedNoClose TestNoIdleConnections",
	"TestTransportPersistConnContextLeakMaxConnsPerHost":        "TestIdleConnectionKeepsNoRequest",
	"TestTransportDecrementConnWhenIdleConnRemoved":             "TestMaxPerHost",
	"TestTransportSocketLateBinding":                            "-: a request that has begun to dial waits for that dial alone",
	"TestTransportConcurrency":                                  "TestAnswersAreNotMixedUp",
	"TestTransportIssue10457":                                   "TestSurprisingCloses",
	"TestTransportNoReuseAfterEarlyResponse":                    "TestEarlyResponse",
	"TestTransportIgnores408":                                   "TestDeadIdleConnections",
	"TestIs408":                                                 inside,
	"TestTLSServerClosesConnection":                             "TestIdleConnectionsOverTLS",
	"TestTransportPoolConnReusePriorConnection":                 "TestReuse",
	"TestTransportPoolConnCannotReuseConnectionInUse":           "TestIdleConnectionsAreAStack",
	"TestTransportPoolConnConnectionBecomesAvailableDuringDial": "-: a request that has begun to dial waits for that dial alone",
	"TestTransportPoolDisableKeepAlives":                        "TestNoIdleConnections",
	"TestTransportPoolCancelRequestReusesConn":                  "-: the dial of a request that leaves ends with it",
	"TestTransportPoolCancelRequestWithDisableKeepAlives":       "TestCancel",
	"TestTransportPoolConnectionBroken":                         "TestEarlyCloseAtEveryByte TestCloseEarly",
	"TestTransportPoolClosesConnsPastMaxIdleConnsPerHost":       "TestIdleConnectionsAreAStack",

	// Retries.
	"TestRetryRequestsOnError":             "TestRetry",
	"TestTransportShouldRetryRequest":      "TestRetry TestNoRetryOnNewConnection TestNoRetryAfterFirstByte",
	"TestTransportRequestReplayable":       "TestRetry",
	"TestTransportPersistConnReadLoopEOF":  "TestNoRetryOnNewConnection",
	"TestConnClosedBeforeRequestIsWritten": "TestConnectionErrors TestFailedDialClosesBody",
	"TestTransportReturnsPeekError":        "TestConnectionErrors",

	// Requests.
	"TestTransportFlushesBodyChunks":           "TestChunksAreNotHeldBack",
	"TestTransportFlushesRequestHeader":        "TestHeaderGoesAheadOfBody",
	"TestTransportNoHost":                      "TestInvalidRequestsAreNotSent",
	"TestTransportEmptyMethod":                 "TestWhatIsSent",
	"TestTransportRejectsAlphaPort":            "TestInvalidRequestsAreNotSent TestTargetOfURL",
	"TestRequestSanitization":                  "TestInvalidRequestsAreNotSent FuzzRequest",
	"TestValidateClientRequestTrailers":        "TestInvalidRequestsAreNotSent TestTrailerIsFilledWhileBodyIsRead",
	"TestTransportClosesBodyOnInvalidRequests": "TestInvalidRequestsAreNotSent",
	"TestTransportClosesBodyOnError":           "TestFailedDialClosesBody TestServerAbortsDuringBody",
	"TestTransportClosesRequestBody":           "TestRetry TestExpectContinue TestServerAbortsDuringBody",
	"TestTransportIDNA":                        "gateway.TestTransportTranslatesHosts TestInvalidRequestsAreNotSent",
	"TestTransportRequestWriteRoundTrip":       "-: bodies come from clients, and not from files for sendfile",
	"TestTransportCONNECTBidi":                 "-: CONNECT is refused, see TestInvalidRequestsAreNotSent",
	"TestIssue32441":                           noOption,

	// Responses.
	"TestTransportHeadResponses":                             "TestHeadResponses TestReuse",
	"TestTransportHeadChunkedResponse":                       "TestHeadResponses TestEmptyResponsesNeedNoClose",
	"TestChunkedNoContent":                                   "TestEmptyResponsesNeedNoClose",
	"TestNoBodyOnChunked304Response":                         "TestEmptyResponsesNeedNoClose",
	"TestIssue3644":                                          "TestWaysToReadABody TestReuse",
	"TestIssue3595":                                          "TestResponseIsPreferredToWriteError TestEarlyResponse",
	"TestTransportPrefersResponseOverWriteError":             "TestResponseIsPreferredToWriteError",
	"TestTransportReqCancelerCleanupOnRequestBodyWriteError": "TestResponseIsPreferredToWriteError",
	"TestTransportResponseHeaderLength":                      "TestMaxHeaderBytes",
	"TestInvalidHeaderResponse":                              "TestHostileResponses TestAsReadResponse",
	"TestTransportRejectsSignInContentLength":                "TestHostileResponses",
	"TestTransportCloseResponseBody":                         "TestCloseEarly",
	"TestHandlerAbortRacesBodyRead":                          "TestServerAbortsDuringBody",
	"TestTransportReading100Continue":                        "TestUnaskedContinue TestInterimResponses",
	"TestTransportIgnore1xxResponses":                        "TestInterimResponses",
	"TestTransportLimits1xxResponses":                        "TestMaxHeaderBytes TestHostileResponses",
	"TestTransportDoesNotLimitDelivered1xxResponses":         "-: they count against MaxHeaderBytes, seen by a hook or not, see TestMaxHeaderBytes",
	"TestTransportTreat101Terminal":                          "-: 101 that nobody asked for is refused, see TestUpgradeRefused",
	"TestTransportResponseBodyWritableOnProtocolSwitch":      "TestUpgrade",
	"TestTransportExpect100ContinueSent":                     "TestExpectContinue",
	"TestTransportExpect100Continue200ResponseNoConnClose": "-: the body is not sent after a final answer, and the connection closes, " +
		"see TestExpectContinue",
	"TestTransportExpect100Continue200ResponseWithConnClose": "TestExpectContinue",
	"TestTransportExpect100Continue500ResponseNoConnClose":   "TestExpectContinue",
	"TestTransportExpect100Continue500ResponseTimeout":       "TestExpectContinue",

	// Cancellation and timeouts.
	"TestTransportCheckContextDoneEarly":              "TestCancel",
	"TestTransportCancelRequest":                      "TestCancel TestCancelWhileBodyIsRead",
	"TestTransportCancelRequestInDo":                  "TestCancel",
	"TestTransportCancelRequestWithBodyInDo":          "TestCancel",
	"TestTransportCancelRequestInDial":                "TestCancel",
	"TestTransportCancelRequestWithBody":              "TestCancel",
	"TestTransportCancelRequestBeforeDo":              "TestCancel",
	"TestTransportCancelRequestBeforeResponseHeaders": "TestCancel",
	"TestTransportResponseCancelRace":                 "TestNextRequestHasItsOwnContext TestLateWatcher",
	"TestCancelRequestWhenSharingConnection":          "TestWaitersAreServedInOrder TestNextRequestHasItsOwnContext",
	"TestErrorWriteLoopRace":                          "TestAnswersAreNotMixedUp",
	"TestClientTimeoutKillsConn_BeforeHeaders":        "TestCancel",
	"TestClientTimeoutKillsConn_AfterHeaders":         "TestCancelWhileBodyIsRead",
	"TestIssue4191_InfiniteGetTimeout":                "TestCancelWhileBodyIsRead",
	"TestIssue4191_InfiniteGetToPutTimeout":           "TestAnswerIsBodyOfAnother",
	"TestTransportResponseHeaderTimeout":              "TestResponseHeaderTimeout TestResponseHeaderTimeoutSparesBody",
	"TestTransportTLSHandshakeTimeout":                "TestTLSHandshakeTimeout",

	// Dialing and hooks.
	"TestTransportDialContext":         "TestDialGetsTheContext",
	"TestTransportDialTLS":             noOption,
	"TestTransportDialTLSContext":      noOption,
	"TestTransportEventTrace":          "TestClientTrace",
	"TestTransportEventTrace_NoHooks":  "TestClientTrace",
	"TestTransportEventTraceTLSVerify": "TestFailedHandshakeIsReported",
	"TestTransportEventTraceRealDNS":   "-: a net.Dialer looks names up and calls those hooks itself",
	"TestTLSHandshakeTrace":            "TestClientTrace TestFailedHandshakeIsReported",

	// Choice of the protocol.
	"TestTransportServerProtocols": "gateway.TestTransportLearnsProtocols gateway.TestTransportH2C TestNegotiate",
	"TestTransportBodyAltRewind":   "TestOtherProtocol gateway.TestTransportLearnsProtocols",
	"TestTransportAltProto":        "gateway.TestSocketByNetHTTP",
	"TestAltProtoCancellation":     inside,
	"TestTransportAutomaticHTTP2":  noHTTP2,
	"TestTransportAutomaticHTTP2_DialerAndTLSConfigSupportsHTTP2AndTLSConfig": noHTTP2,
	"TestTransportAutomaticHTTP2_DefaultTransport":                            noHTTP2,
	"TestTransportAutomaticHTTP2_TLSNextProto":                                noHTTP2,
	"TestTransportAutomaticHTTP2_TLSConfig":                                   noHTTP2,
	"TestTransportAutomaticHTTP2_ExpectContinueTimeout":                       noHTTP2,
	"TestTransportAutomaticHTTP2_Dial":                                        noHTTP2,
	"TestTransportAutomaticHTTP2_DialContext":                                 noHTTP2,
	"TestTransportAutomaticHTTP2_DialTLS":                                     noHTTP2,
	"TestTransportTraceGotConnH2IdleConns":                                    noHTTP2,
	"TestNoCrashReturningTransportAltConn":                                    noHTTP2,
	"TestIdleConnH2Crash":                                                     noHTTP2,
	"TestDontCacheBrokenHTTP2Conn":                                            noHTTP2,
	"TestIssue61474":                                                          noHTTP2,
	"TestTransportPoolConnHTTP2StrictMaxConcurrentRequests":                   noHTTP2,
	"TestTransportPoolConnHTTP2Startup":                                       noHTTP2,
	"TestTransportPoolMaxIdleConnsPerHostHTTP2":                               noHTTP2,

	// Features that a transport for proxying does not have.
	"TestRoundTripGzip":                                     noGzip,
	"TestTransportGzip":                                     noGzip,
	"TestTransportGzipRecursive":                            noGzip,
	"TestTransportGzipShort":                                noGzip,
	"TestTransportRangeAndGzip":                             noGzip,
	"TestTransportContentEncodingCaseInsensitive":           noGzip,
	"TestTransportReuseConnection_Gzip_Chunked":             noGzip,
	"TestTransportReuseConnection_Gzip_ContentLength":       noGzip,
	"TestSOCKS5Proxy":                                       noProxy,
	"TestTransportProxy":                                    noProxy,
	"TestProxyWithInfiniteHeader":                           noProxy,
	"TestOnProxyConnectResponse":                            noProxy,
	"TestTransportProxyHTTPSConnectLeak":                    noProxy,
	"TestTransportDialPreservesNetOpProxyError":             noProxy,
	"TestTransportProxyDialDoesNotMutateProxyConnectHeader": noProxy,
	"TestProxyFromEnvironment":                              noProxy,
	"TestProxyFromEnvironmentLowerCase":                     noProxy,
	"TestRoundTripReturnsProxyError":                        noProxy,
	"TestTransportProxyConnectHeader":                       noProxy,
	"TestTransportProxyGetConnectHeader":                    noProxy,
	"TestMissingStatusNoPanic":                              noProxy,
	"TestProxyAuthHeader":                                   noProxy,
	"TestTransportClone":                                    noOption,
}

var testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)

// testsIn returns the names of the tests that the files declare.
func testsIn(t *testing.T, files ...string) (names []string) {
	t.Helper()
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range testFunc.FindAllSubmatch(source, -1) {
			names = append(names, string(m[1]))
		}
	}
	return names
}

// Each test that the table names exists.
func TestBehavioursAreTested(t *testing.T) {
	here, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Glob("../../*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	tests := testsIn(t, here...)
	for _, name := range testsIn(t, root...) {
		tests = append(tests, "gateway."+name)
	}
	for theirs, ours := range behaviours {
		if strings.HasPrefix(ours, "-: ") {
			continue
		}
		for _, name := range strings.Fields(ours) {
			if !slices.Contains(tests, name) {
				t.Errorf("%s: there is no test %s", theirs, name)
			}
		}
	}
}

// behavioursOf is the release of Go whose tests the table lists. Another release may have more; then they are logged.
const behavioursOf = "go1.26.8"

// The table contains each test of net/http's transport.
func TestBehavioursAreAll(t *testing.T) {
	dir := filepath.Join(build.Default.GOROOT, "src", "net", "http")
	files, err := filepath.Glob(filepath.Join(dir, "transport*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Skipf("This Go has no source of its tests in %q.", dir)
	}
	for _, name := range testsIn(t, files...) {
		switch {
		case behaviours[name] != "":
		case runtime.Version() == behavioursOf:
			t.Errorf("the table does not have %s", name)
		default:
			t.Logf("the table, made for %s, does not have %s of %s", behavioursOf, name, runtime.Version())
		}
	}
}
