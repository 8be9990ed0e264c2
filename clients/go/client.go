package tinkergate

import (
	"cmp"
	"context"
	"crypto/tls"
	"iter"
	"os"
	"time"

	"google.golang.org/grpc"

	v1 "tinkergate.example/tinkergate/v1"
)

// DefaultAddress is where a gateway listens unless told otherwise.
const DefaultAddress = "127.0.0.1:7700"

const clientVersion = "tinkergate-go/" + Version

// Version is that of this module.
const Version = "0.1.0"

type settings struct {
	target   string
	apiKey   string
	tls      *tls.Config
	timeout  time.Duration
	patience time.Duration
	dial     []grpc.DialOption
}

// Option is a setting of [Connect].
type Option func(*settings)

// WithAPIKey sends a key with every call; that of TINKERGATE_API_KEY otherwise.
func WithAPIKey(key string) Option { return func(s *settings) { s.apiKey = key } }

// WithTLS speaks TLS, as an empty config with the system's authorities; see [TLSFiles]. Without
// it the connection is plain text.
func WithTLS(config *tls.Config) Option { return func(s *settings) { s.tls = config } }

// WithTimeout is how long [Connect] waits for the gateway's first answer; 10 s otherwise.
func WithTimeout(timeout time.Duration) Option { return func(s *settings) { s.timeout = timeout } }

// WithPatience is how long later calls are tried again while no gateway answers; 10 min otherwise.
func WithPatience(patience time.Duration) Option {
	return func(s *settings) { s.patience = patience }
}

// WithDialOptions adds options of the gRPC channel, such as interceptors.
func WithDialOptions(options ...grpc.DialOption) Option {
	return func(s *settings) { s.dial = append(s.dial, options...) }
}

// Client is a connection to a gateway. Safe for concurrent use; close it.
type Client struct {
	connection *connection
	// Checkpoints looks after what was saved.
	Checkpoints *Checkpoints
}

// Connect connects to a gateway and asks it what it can do. An empty target means that of
// TINKERGATE_ADDRESS, or [DefaultAddress] without it. The context counts for connecting only.
//
// Fails with [GatewayUnreachable] if no gateway answers, [AccessDenied] for a wrong key.
func Connect(ctx context.Context, target string, options ...Option) (*Client, error) {
	chosen := settings{
		target:   cmp.Or(target, os.Getenv("TINKERGATE_ADDRESS"), DefaultAddress),
		apiKey:   os.Getenv("TINKERGATE_API_KEY"),
		timeout:  10 * time.Second,
		patience: 10 * time.Minute,
	}
	for _, option := range options {
		option(&chosen)
	}
	connection, err := dial(chosen)
	if err != nil {
		return nil, err
	}
	if err := connection.learn(ctx, chosen.timeout); err != nil {
		connection.close()
		return nil, err
	}
	return &Client{connection, &Checkpoints{connection}}, nil
}

// Close gives up all calls and the connection. Sessions that are not finished expire.
func (c *Client) Close() error {
	c.connection.close()
	return nil
}

// Target is the gateway's address.
func (c *Client) Target() string { return c.connection.target }

// Capabilities is what the gateway can do now: backends, models, limits.
func (c *Client) Capabilities(ctx context.Context) (*v1.GetCapabilitiesResponse, error) {
	return call(ctx, c.connection, c.connection.capabilities.GetCapabilities,
		&v1.GetCapabilitiesRequest{}, attempt{})
}

// Sessions lists the sessions that the gateway remembers, newest first.
func (c *Client) Sessions(ctx context.Context) iter.Seq2[*v1.Session, error] {
	return pages(func(token string) ([]*v1.Session, string, error) {
		page, err := call(ctx, c.connection, c.connection.sessions.ListSessions,
			&v1.ListSessionsRequest{PageSize: pageSize, PageToken: token}, attempt{})
		return page.GetSessions(), page.GetNextPageToken(), err
	})
}

// Models lists the models of a session, or all if it is empty, newest first.
func (c *Client) Models(ctx context.Context, sessionID string) iter.Seq2[*v1.Model, error] {
	return pages(func(token string) ([]*v1.Model, string, error) {
		page, err := call(ctx, c.connection, c.connection.models.ListModels,
			&v1.ListModelsRequest{SessionId: sessionID, PageSize: pageSize, PageToken: token},
			attempt{})
		return page.GetModels(), page.GetNextPageToken(), err
	})
}

// Operations lists the operations of a model, or all if it is empty, newest first and without
// their results.
func (c *Client) Operations(ctx context.Context, modelID string) iter.Seq2[*v1.Operation, error] {
	return pages(func(token string) ([]*v1.Operation, string, error) {
		page, err := call(ctx, c.connection, c.connection.operations.ListOperations,
			&v1.ListOperationsRequest{ModelId: modelID, PageSize: pageSize, PageToken: token},
			attempt{})
		return page.GetOperations(), page.GetNextPageToken(), err
	})
}

// Operation is the result of an operation that any client submitted, by its name: a
// *ForwardBackwardResult, an *OptimStepResult, a path, an id, or nil.
func (c *Client) Operation(ctx context.Context, name string) (*Future[any], error) {
	found, err := call(ctx, c.connection, c.connection.operations.GetOperation,
		&v1.GetOperationRequest{Name: name}, attempt{})
	if err != nil {
		return nil, err
	}
	return accepted(c.connection, found.Operation, readAny), nil
}

// Renderer turns chat messages into tokens and back for a base model; for the gateway's default
// model if the name is empty.
func (c *Client) Renderer(baseModel string) (*Renderer, error) {
	name, err := c.connection.baseModel(baseModel)
	return &Renderer{c.connection, name}, err
}

// Sampler samples and scores without a session. If the source names nothing, it is the gateway's
// default model.
func (c *Client) Sampler(source Source) (*Sampler, error) { return newSampler(c.connection, source) }

const pageSize = 1000

// pages is a list of any length, asked for page by page.
func pages[Item any](page func(token string) ([]Item, string, error)) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		var none Item
		for token := ""; ; {
			items, next, err := page(token)
			if err != nil {
				yield(none, err)
				return
			}
			for _, item := range items {
				if !yield(item, nil) {
					return
				}
			}
			if token = next; token == "" {
				return
			}
		}
	}
}
