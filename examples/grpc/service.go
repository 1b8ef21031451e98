package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// words is the service behind the gateway. Its description is what protoc would generate, written by hand
// around messages that come with protobuf.
type words struct {
	ended chan error // why each call of Wait and each stream of Count ended
}

const service = "example.Words"

var description = grpc.ServiceDesc{
	ServiceName: service,
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{
		{MethodName: "Upper", Handler: unary((*words).upper)},
		{MethodName: "Fail", Handler: unary((*words).fail)},
		{MethodName: "Wait", Handler: unary((*words).wait)},
	},
	Streams: []grpc.StreamDesc{
		{StreamName: "Count", Handler: streaming((*words).count), ServerStreams: true},
		{StreamName: "Chat", Handler: streaming((*words).chat), ServerStreams: true, ClientStreams: true},
	},
}

func unary[Req any](do func(*words, context.Context, *Req) (any, error)) grpc.MethodHandler {
	return func(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		req := new(Req)
		if err := decode(req); err != nil {
			return nil, err
		}
		return do(srv.(*words), ctx, req)
	}
}

func streaming(do func(*words, grpc.ServerStream) error) grpc.StreamHandler {
	return func(srv any, stream grpc.ServerStream) error { return do(srv.(*words), stream) }
}

// upper also says by metadata who the gateway says is calling, and gives back what it was sent.
func (*words) upper(ctx context.Context, in *wrapperspb.StringValue) (any, error) {
	came, _ := metadata.FromIncomingContext(ctx)
	if err := grpc.SetHeader(ctx, metadata.MD{"caller": came["x-user-id"], "note-bin": came["note-bin"]}); err != nil {
		return nil, err
	}
	if err := grpc.SetTrailer(ctx, metadata.Pairs("length", fmt.Sprint(len(in.Value)))); err != nil {
		return nil, err
	}
	return wrapperspb.String(strings.ToUpper(in.Value)), nil
}

func (*words) fail(_ context.Context, in *wrapperspb.StringValue) (any, error) {
	s, err := status.New(codes.FailedPrecondition, "not today: "+in.Value).WithDetails(wrapperspb.String("come back tomorrow"))
	if err != nil {
		return nil, err
	}
	return nil, s.Err()
}

// wait lasts until the client has had enough.
func (w *words) wait(ctx context.Context, _ *emptypb.Empty) (any, error) {
	<-ctx.Done()
	w.ended <- ctx.Err()
	return nil, status.FromContextError(ctx.Err()).Err()
}

// count counts to what it is told, or without end below 0.
func (w *words) count(stream grpc.ServerStream) error {
	var to wrapperspb.Int32Value
	if err := stream.RecvMsg(&to); err != nil {
		return err
	}
	for n := int32(1); n <= to.Value || to.Value < 0; n++ {
		if stream.SendMsg(wrapperspb.Int32(n)) != nil {
			<-stream.Context().Done() // which may come a moment later
			break
		}
	}
	w.ended <- stream.Context().Err()
	return nil
}

// chat answers each message before the next one comes.
func (*words) chat(stream grpc.ServerStream) error {
	for n := 0; ; n++ {
		var in wrapperspb.StringValue
		switch err := stream.RecvMsg(&in); err {
		case nil:
		case io.EOF:
			stream.SetTrailer(metadata.Pairs("heard", fmt.Sprint(n)))
			return nil
		default:
			return err
		}
		if err := stream.SendMsg(wrapperspb.String("you said " + in.Value)); err != nil {
			return err
		}
	}
}
