package tinkergate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	v1 "tinkergate.example/tinkergate/v1"
)

const (
	messageBytes = 64 << 20
	// attemptTime is the deadline of one attempt of a call that does no long work: time to send
	// 64 MiB.
	attemptTime = 120 * time.Second
	// workTime is that of a call that does, for as long as somebody waits for it: without any
	// deadline a gateway gives it ten minutes.
	workTime     = 24 * time.Hour
	answerMargin = 30 * time.Second
)

// TLSFiles reads PEM files for [WithTLS]. Without ca the system's authorities are trusted.
// certificate and key go together and are shown to gateways that ask for one (mTLS); both may be
// empty.
func TLSFiles(ca, certificate, key string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if (certificate == "") != (key == "") {
		return nil, errors.New("tls: certificate and key must be given together")
	}
	if ca != "" {
		text, err := os.ReadFile(ca)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("tls: %s holds no certificate", ca)
		}
	}
	if certificate != "" {
		pair, err := tls.LoadX509KeyPair(certificate, key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// bearer sends the key with every call.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity allows plain text: gateways listen on loopback unless told otherwise.
func (b bearer) RequireTransportSecurity() bool { return false }

// connection is the channel to one gateway, its stubs, and what the gateway said about itself.
type connection struct {
	target   string
	patience time.Duration
	channel  *grpc.ClientConn
	// alive ends when the client is closed.
	alive context.Context
	end   context.CancelFunc

	capabilities v1.CapabilitiesServiceClient
	sessions     v1.SessionServiceClient
	models       v1.ModelServiceClient
	training     v1.TrainingServiceClient
	operations   v1.OperationServiceClient
	sampling     v1.SamplingServiceClient
	scoring      v1.ScoringServiceClient
	rendering    v1.RenderServiceClient
	checkpoints  v1.CheckpointServiceClient

	limits *v1.Limits
	// paired are the losses whose datums come in pairs.
	paired       map[string]bool
	defaultModel string
}

func dial(settings settings) (*connection, error) {
	security := insecure.NewCredentials()
	if settings.tls != nil {
		security = credentials.NewTLS(settings.tls)
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(security),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(messageBytes), grpc.MaxCallSendMsgSize(messageBytes)),
		// Gateways refuse clients that ping more often than twice a minute.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: 60 * time.Second, Timeout: 20 * time.Second, PermitWithoutStream: true,
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2,
				MaxDelay: longestDelay,
			},
			MinConnectTimeout: longestDelay,
		}),
	}
	if settings.apiKey != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer(settings.apiKey)))
	}
	channel, err := grpc.NewClient(settings.target, append(options, settings.dial...)...)
	if err != nil {
		return nil, err
	}
	alive, end := context.WithCancel(context.Background())
	return &connection{
		target: settings.target, patience: settings.patience, channel: channel,
		alive: alive, end: end,
		capabilities: v1.NewCapabilitiesServiceClient(channel),
		sessions:     v1.NewSessionServiceClient(channel),
		models:       v1.NewModelServiceClient(channel),
		training:     v1.NewTrainingServiceClient(channel),
		operations:   v1.NewOperationServiceClient(channel),
		sampling:     v1.NewSamplingServiceClient(channel),
		scoring:      v1.NewScoringServiceClient(channel),
		rendering:    v1.NewRenderServiceClient(channel),
		checkpoints:  v1.NewCheckpointServiceClient(channel),
	}, nil
}

// learn asks the gateway what it can do, waiting for it to come up.
func (c *connection) learn(ctx context.Context, timeout time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	first, err := call(limited, c, c.capabilities.GetCapabilities, &v1.GetCapabilitiesRequest{},
		attempt{patience: timeout})
	if err != nil {
		if failure := errorFromCall(err); failure.Kind != GatewayUnreachable && failure.cause == nil {
			return err
		}
		if ctx.Err() != nil {
			return errorFromContext(ctx)
		}
		return &Error{
			Kind: GatewayUnreachable, Code: errorFromCall(err).Code,
			Message: fmt.Sprintf("no gateway answered at %s within %s; `tinkergate serve` starts one",
				c.target, timeout),
		}
	}
	c.limits, c.defaultModel, c.paired = first.Limits, first.DefaultModel, map[string]bool{}
	for _, backend := range first.Backends {
		for _, loss := range backend.Losses {
			if loss.Paired {
				c.paired[loss.Name] = true
			}
		}
	}
	return nil
}

// baseModel is name, or the gateway's default base model if it is empty.
func (c *connection) baseModel(name string) (string, error) {
	if name == "" && c.defaultModel == "" {
		return "", &Error{
			Kind:    NotFound,
			Message: "the gateway at " + c.target + " has no default model; name one",
		}
	}
	if name == "" {
		return c.defaultModel, nil
	}
	return name, nil
}

func (c *connection) close() {
	c.end()
	_ = c.channel.Close()
}

// attempt says how a call is made and tried again. What is zero has the usual value.
type attempt struct {
	timeout  time.Duration // of one attempt
	patience time.Duration // while no gateway answers; negative for a single attempt
	noRoom   bool          // do not wait for room in the gateway's queue
}

type rpc[Request, Response any] = func(
	context.Context, *Request, ...grpc.CallOption) (*Response, error)

// call makes a call. It is tried again while no gateway answers, for as long as the connection has
// patience, and while the gateway's queue is full. Errors are of type *Error.
func call[Request, Response any](
	ctx context.Context, c *connection, method rpc[Request, Response], request *Request, how attempt,
) (*Response, error) {
	if how.timeout == 0 {
		how.timeout = attemptTime
	}
	if how.patience == 0 {
		how.patience = c.patience
	}
	waiting := patience{most: how.patience, noRoom: how.noRoom}
	for {
		if c.alive.Err() != nil {
			return nil, clientClosed()
		}
		if ctx.Err() != nil {
			return nil, errorFromContext(ctx)
		}
		limited, cancel := context.WithTimeout(ctx, how.timeout)
		response, err := method(limited, request)
		cancel()
		if err == nil {
			return response, nil
		}
		if c.alive.Err() != nil {
			return nil, clientClosed()
		}
		failure := errorFromCall(err)
		if ctx.Err() != nil {
			return nil, errorFromContext(ctx)
		}
		delay, again := waiting.delayAfter(failure)
		if !again {
			return nil, failure
		}
		if !c.sleep(ctx, delay) && ctx.Err() != nil {
			return nil, errorFromContext(ctx)
		}
	}
}

// sleep waits; false if the context or the client ended first.
func (c *connection) sleep(ctx context.Context, delay time.Duration) bool {
	either, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.alive, cancel)()
	return sleep(either, delay)
}
