package tinkergate

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// readOn reads a stream, anew and anew while no gateway answers. read tells by progress that
// something arrived, and returns nil at the end. What it returns that is no gRPC status ends the
// reading as it is.
func readOn(
	ctx context.Context, c *connection, read func(ctx context.Context, progress func()) error,
) error {
	waiting := patience{most: c.patience}
	for {
		if c.alive.Err() != nil {
			return clientClosed()
		}
		streaming, cancel := context.WithCancel(ctx)
		err := read(streaming, func() { waiting = patience{most: c.patience} })
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return errorFromContext(ctx)
		case c.alive.Err() != nil:
			return clientClosed()
		}
		if _, ok := status.FromError(err); !ok {
			return err
		}
		failure := errorFromCall(err)
		// How gRPC and proxies tell of a stream that broke off. Reading may be tried again
		// whatever it was.
		if failure.Reason == "" &&
			(failure.Code == codes.Internal || failure.Code == codes.Unknown) {
			failure.Kind = GatewayUnreachable
		}
		delay, again := waiting.delayAfter(failure)
		if !again {
			return failure
		}
		if !c.sleep(ctx, delay) && ctx.Err() != nil {
			return errorFromContext(ctx)
		}
	}
}
