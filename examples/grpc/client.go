package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// client tries the service through the gateway.
type client struct {
	conn   *grpc.ClientConn
	words  *words         // to see how calls end at the server
	health *health.Server // to change how the server is
	drain  func()         // begins to stop the gateway
}

func (c *client) tryAll(ctx context.Context, out io.Writer) error {
	withKey := metadata.AppendToOutgoingContext(ctx, "x-api-key", "secret")
	for _, try := range []struct {
		name string
		ctx  context.Context
		do   func(context.Context) (string, error)
	}{
		{"unary", withKey, c.unary},
		{"server stream", withKey, c.serverStream},
		{"both ways", withKey, c.bothWays},
		{"status", withKey, c.status},
		{"deadline", withKey, c.deadline},
		{"cancel", withKey, c.cancel},
		{"refusals", ctx, c.refusals},
		{"health", ctx, c.healthWatch},
		{"drain", withKey, c.drained},
	} {
		said, err := try.do(try.ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", try.name, err)
		}
		fmt.Fprintf(out, "%-14s %s\n", try.name, said)
	}
	return nil
}

// unary sends what a client might forge beside what it may say.
func (c *client) unary(ctx context.Context) (string, error) {
	ctx = metadata.AppendToOutgoingContext(ctx, "x-user-id", "root", "x_user_id", "root", "note-bin", "\x00\xff\n")
	word := strings.Repeat("gateway ", 1<<17) // 1 MiB
	var answer wrapperspb.StringValue
	var header, trailer metadata.MD
	err := c.conn.Invoke(ctx, "/"+service+"/Upper", wrapperspb.String(word), &answer, grpc.Header(&header), grpc.Trailer(&trailer))
	switch {
	case err != nil:
		return "", err
	case answer.Value != strings.ToUpper(word):
		return "", fmt.Errorf("%d bytes came back", len(answer.Value))
	case fmt.Sprint(header["caller"]) != "[alice]":
		return "", fmt.Errorf("the server takes the caller for %q", header["caller"])
	case fmt.Sprintf("%q", header["note-bin"]) != `["\x00\xff\n"]` || fmt.Sprint(trailer["length"]) != fmt.Sprint([]int{len(word)}):
		return "", fmt.Errorf("metadata: %v and %v", header, trailer)
	}
	return "1 MiB and back, metadata in header and trailer; the server knows who calls from the gateway alone", nil
}

func (c *client) serverStream(ctx context.Context) (string, error) {
	const many = 1000
	stream, err := c.count(ctx, many)
	if err != nil {
		return "", err
	}
	for want := int32(1); ; want++ {
		var n wrapperspb.Int32Value
		err := stream.RecvMsg(&n)
		switch {
		case err == io.EOF && want == many+1:
			return fmt.Sprintf("%d messages in order", many), c.endedWith(ctx, nil)
		case err != nil:
			return "", fmt.Errorf("instead of message %d: %w", want, err)
		case n.Value != want:
			return "", fmt.Errorf("message %d came as %d", want, n.Value)
		}
	}
}

func (c *client) count(ctx context.Context, to int32) (grpc.ClientStream, error) {
	stream, err := c.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/"+service+"/Count")
	if err != nil {
		return nil, err
	}
	return stream, errors.Join(stream.SendMsg(wrapperspb.Int32(to)), stream.CloseSend())
}

func (c *client) chat(ctx context.Context) (grpc.ClientStream, error) {
	return c.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/"+service+"/Chat")
}

// say waits for the answer, so nothing on the way may wait for more.
func say(stream grpc.ClientStream, word string) error {
	if err := stream.SendMsg(wrapperspb.String(word)); err != nil {
		return err
	}
	var answer wrapperspb.StringValue
	if err := stream.RecvMsg(&answer); err != nil {
		return err
	}
	if answer.Value != "you said "+word {
		return fmt.Errorf("answer to %q: %q", word, answer.Value)
	}
	return nil
}

// hangUp ends a chat in which n words were said.
func hangUp(stream grpc.ClientStream, n int) error {
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if err := stream.RecvMsg(new(wrapperspb.StringValue)); err != io.EOF {
		return fmt.Errorf("end of the stream: %v", err)
	}
	if heard := stream.Trailer()["heard"]; fmt.Sprint(heard) != fmt.Sprint([]int{n}) {
		return fmt.Errorf("trailer: heard %v", heard)
	}
	return nil
}

func (c *client) bothWays(ctx context.Context) (string, error) {
	stream, err := c.chat(ctx)
	if err != nil {
		return "", err
	}
	const many = 100
	for n := range many {
		if err := say(stream, fmt.Sprint("word ", n)); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%d messages, each answered before the next; a trailer at the end", many), hangUp(stream, many)
}

func (c *client) status(ctx context.Context) (string, error) {
	err := c.conn.Invoke(ctx, "/"+service+"/Fail", wrapperspb.String("100% ü"), new(emptypb.Empty))
	s := status.Convert(err)
	if s.Code() != codes.FailedPrecondition || s.Message() != "not today: 100% ü" || len(s.Details()) != 1 {
		return "", fmt.Errorf("status: %v", err)
	}
	if d, ok := s.Details()[0].(*wrapperspb.StringValue); !ok || d.Value != "come back tomorrow" {
		return "", fmt.Errorf("details: %v", s.Details())
	}
	if err := c.refused(ctx, "/"+service+"/NoSuch", codes.Unimplemented); err != nil {
		return "", err
	}
	return "code, message and details arrive", nil
}

func (c *client) deadline(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := c.refused(ctx, "/"+service+"/Wait", codes.DeadlineExceeded); err != nil {
		return "", err
	}
	return "the server knew it, and gave up as well", c.endedWith(context.WithoutCancel(ctx), context.DeadlineExceeded, context.Canceled)
}

func (c *client) cancel(ctx context.Context) (string, error) {
	calling, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.count(calling, -1)
	if err != nil {
		return "", err
	}
	if err := stream.RecvMsg(new(wrapperspb.Int32Value)); err != nil {
		return "", err
	}
	cancel()
	for err == nil { // what is on its way still comes
		err = stream.RecvMsg(new(wrapperspb.Int32Value))
	}
	if status.Code(err) != codes.Canceled {
		return "", fmt.Errorf("end of the stream: %v", err)
	}
	return "an endless stream ends at the server, too", c.endedWith(ctx, context.Canceled)
}

// refusals are made by the gateway, in gRPC's own words.
func (c *client) refusals(ctx context.Context) (string, error) {
	return "without a key Unauthenticated, where there is no route Unimplemented", errors.Join(
		c.refused(ctx, "/"+service+"/Upper", codes.Unauthenticated),
		c.refused(ctx, "/example.Secrets/Tell", codes.Unimplemented),
	)
}

func (c *client) refused(ctx context.Context, method string, want codes.Code) error {
	err := c.conn.Invoke(ctx, method, new(emptypb.Empty), new(emptypb.Empty))
	if status.Code(err) != want || strings.Contains(err.Error(), "HTTP") {
		return fmt.Errorf("%s: %v instead of %v", method, err, want)
	}
	return nil
}

// healthWatch hears of a change on a stream that stays open.
func (c *client) healthWatch(ctx context.Context) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch, err := grpc_health_v1.NewHealthClient(c.conn).Watch(ctx, new(grpc_health_v1.HealthCheckRequest))
	if err != nil {
		return "", err
	}
	for _, want := range []grpc_health_v1.HealthCheckResponse_ServingStatus{
		grpc_health_v1.HealthCheckResponse_SERVING,
		grpc_health_v1.HealthCheckResponse_NOT_SERVING,
	} {
		got, err := watch.Recv()
		if err != nil {
			return "", err
		}
		if got.Status != want {
			return "", fmt.Errorf("%v instead of %v", got.Status, want)
		}
		c.health.SetServingStatus("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	}
	return "a watch hears at once that the server does not serve any more", nil
}

// drained is last: the gateway takes no calls after it.
func (c *client) drained(ctx context.Context) (string, error) {
	stream, err := c.chat(ctx)
	if err != nil {
		return "", err
	}
	if err := say(stream, "before"); err != nil {
		return "", err
	}
	c.drain()
	for _, word := range []string{"meanwhile", "at last"} {
		if err := say(stream, word); err != nil {
			return "", err
		}
	}
	if err := hangUp(stream, 3); err != nil {
		return "", err
	}
	return "an open stream goes on to its end; new calls get Unavailable", c.refused(ctx, "/"+service+"/Upper", codes.Unavailable)
}

// endedWith waits for the end of a call at the server. That of a deadline may be the server's own, or the
// client's, whichever comes first.
func (c *client) endedWith(ctx context.Context, want ...error) error {
	select {
	case got := <-c.words.ended:
		for _, w := range want {
			if got == w {
				return nil
			}
		}
		return fmt.Errorf("at the server the call ended with %v", got)
	case <-time.After(10 * time.Second):
		return errors.New("at the server the call does not end")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
