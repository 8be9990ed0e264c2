package tinkergate

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	v1 "tinkergate.example/tinkergate/v1"
)

const (
	heartbeatInterval = 10 * time.Second
	heartbeatTimeout  = 10 * time.Second
)

// SessionOptions say what a session is about. The zero value has all defaults.
type SessionOptions struct {
	DisplayName  string
	Tags         []string
	ProjectID    string
	UserMetadata map[string]string
}

// Session is a program's stay at the gateway, which owns its models and samplers. It keeps itself
// alive by a heartbeat until it is finished.
type Session struct {
	// SessionID is the session's id.
	SessionID string

	connection *connection
	modelIDs   atomic.Int32
	samplerIDs atomic.Int32
	end        context.CancelFunc
	mutex      sync.Mutex
	models     []*TrainingModel
}

// CreateSession opens a session, to be ended by [Session.Finish].
func (c *Client) CreateSession(ctx context.Context, options SessionOptions) (*Session, error) {
	request := &v1.CreateSessionRequest{
		DisplayName: options.DisplayName, Tags: options.Tags, ProjectId: options.ProjectID,
		UserMetadata: options.UserMetadata, ClientVersion: clientVersion, RequestId: newUUID(),
	}
	created, err := call(ctx, c.connection, c.connection.sessions.CreateSession, request, attempt{})
	if err != nil {
		return nil, err
	}
	interval := cmp.Or(created.HeartbeatInterval.AsDuration(), heartbeatInterval)
	return newSession(c.connection, created.Session, interval), nil
}

// AttachSession goes on in a session that another program opened, with a heartbeat of its own.
func (c *Client) AttachSession(ctx context.Context, sessionID string) (*Session, error) {
	found, err := call(ctx, c.connection, c.connection.sessions.GetSession,
		&v1.GetSessionRequest{SessionId: sessionID}, attempt{})
	if err != nil {
		return nil, err
	}
	return newSession(c.connection, found.Session, heartbeatInterval), nil
}

func newSession(c *connection, known *v1.Session, interval time.Duration) *Session {
	alive, end := context.WithCancel(c.alive)
	session := &Session{SessionID: known.SessionId, connection: c, end: end}
	session.modelIDs.Store(int32(len(known.ModelIds)))
	session.samplerIDs.Store(int32(len(known.SamplerIds)))
	go session.beat(alive, interval)
	return session
}

func (s *Session) beat(alive context.Context, interval time.Duration) {
	for sleep(alive, interval) {
		_, err := call(alive, s.connection, s.connection.sessions.HeartbeatSession,
			&v1.HeartbeatSessionRequest{SessionId: s.SessionID}, attempt{timeout: heartbeatTimeout})
		if errors.Is(err, FailedPrecondition) || errors.Is(err, NotFound) {
			return // it has ended; the next call of the program's says so
		}
	}
}

// ModelOptions say which adapter to train. What is nil has the contract's default: rank 32,
// alpha 32, a drawn seed, all parts, AdamW.
type ModelOptions struct {
	// Lora is the adapter.
	Lora *v1.LoraConfig
	// Optimizer is what the model is made for.
	Optimizer *v1.OptimizerConfig
	// Backend is to train it; empty leaves the choice to the gateway.
	Backend string
	// UserMetadata are your own notes.
	UserMetadata map[string]string
	// RolloutCorrection is what the importance_sampling loss does with sequences that trainer and
	// sampler disagree on.
	RolloutCorrection *v1.RolloutCorrection
	// ExactAdapter refuses a backend that would train other parts, rather than have it told in the
	// model's notes.
	ExactAdapter bool
}

// CreateModel makes a LoRA adapter on a base model, and waits until it is ready; on the gateway's
// default model if the name is empty.
func (s *Session) CreateModel(
	ctx context.Context, baseModel string, options ModelOptions,
) (*TrainingModel, error) {
	name, err := s.connection.baseModel(baseModel)
	if err != nil {
		return nil, err
	}
	request := options.request()
	request.Source = &v1.CreateModelRequest_BaseModel{BaseModel: name}
	return s.create(ctx, request)
}

// CreateModelFromCheckpoint makes a model that goes on from a checkpoint, and waits until it is
// ready. The optimizer goes on too, or starts anew. The adapter is the checkpoint's.
func (s *Session) CreateModelFromCheckpoint(
	ctx context.Context, path string, withOptimizer bool, options ModelOptions,
) (*TrainingModel, error) {
	request := options.request()
	request.Source = &v1.CreateModelRequest_Checkpoint{
		Checkpoint: &v1.CheckpointSource{Path: path, WithOptimizer: withOptimizer},
	}
	return s.create(ctx, request)
}

func (o ModelOptions) request() *v1.CreateModelRequest {
	return &v1.CreateModelRequest{
		LoraConfig: o.Lora, OptimizerConfig: o.Optimizer, Backend: o.Backend,
		UserMetadata: o.UserMetadata, RolloutCorrection: o.RolloutCorrection,
		ExactAdapter: o.ExactAdapter,
	}
}

func (s *Session) create(
	ctx context.Context, request *v1.CreateModelRequest,
) (*TrainingModel, error) {
	request.SessionId, request.RequestId = s.SessionID, newUUID()
	request.ModelSeqId = Ptr(s.modelIDs.Add(1) - 1)
	operation, err := call(ctx, s.connection, s.connection.models.CreateModel, request, attempt{})
	if err != nil {
		return nil, err
	}
	done, err := waitFor(ctx, s.connection, operation)
	if err == nil {
		err = errorFromOperation(done)
	}
	if err != nil {
		return nil, err
	}
	return s.trainingModel(done.GetCreateModel().GetModelId(), 1), nil
}

// AttachModel is a model of this session that another program made. Two programs must not train
// one model at the same time.
func (s *Session) AttachModel(ctx context.Context, modelID string) (*TrainingModel, error) {
	found, err := call(ctx, s.connection, s.connection.models.GetModel,
		&v1.GetModelRequest{ModelId: modelID}, attempt{})
	if err != nil {
		return nil, err
	}
	return s.trainingModel(modelID, found.Model.NextSeqId), nil
}

func (s *Session) trainingModel(modelID string, next int32) *TrainingModel {
	model := &TrainingModel{
		ModelID: modelID, connection: s.connection,
		submitter:     newSubmitter(s.connection, modelID, next),
		takeSamplerID: func() int32 { return s.samplerIDs.Add(1) - 1 },
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.models = append(s.models, model)
	return model
}

// CreateSampler makes a sampler of a base model or of a checkpoint; of the gateway's default model
// if the source names neither.
func (s *Session) CreateSampler(ctx context.Context, source Source) (*Sampler, error) {
	request := &v1.CreateSamplerRequest{
		SessionId: s.SessionID, SamplerSeqId: Ptr(s.samplerIDs.Add(1) - 1), Backend: source.Backend,
	}
	if source.ModelPath != "" {
		request.Source = &v1.CreateSamplerRequest_ModelPath{ModelPath: source.ModelPath}
	} else {
		name, err := s.connection.baseModel(source.BaseModel)
		if err != nil {
			return nil, err
		}
		request.Source = &v1.CreateSamplerRequest_BaseModel{BaseModel: name}
	}
	answer, err := call(
		ctx, s.connection, s.connection.sampling.CreateSampler, request, attempt{})
	if err != nil {
		return nil, err
	}
	return samplerOf(s.connection, Source{SamplerID: answer.Sampler.SamplerId}), nil
}

// Finish ends the session and unloads its models. Without a failure it first waits until everything
// submitted before is done; with one it does not wait, and tells the gateway. A context that ended
// counts as an interruption. Finishing twice is no error.
func (s *Session) Finish(ctx context.Context, failure error) error {
	request := &v1.FinishSessionRequest{
		SessionId: s.SessionID, Reason: v1.FinishReason_FINISH_REASON_SUCCESS,
	}
	how := attempt{timeout: heartbeatTimeout}
	if failure != nil {
		request.Reason = v1.FinishReason_FINISH_REASON_ERRORED
		if errors.Is(failure, context.Canceled) {
			request.Reason = v1.FinishReason_FINISH_REASON_INTERRUPTED
		}
		request.Detail = fmt.Sprintf("%.1000s", failure)
		// A program that is going down does not wait for a gateway that is gone.
		how.patience = -1
	}
	s.mutex.Lock()
	models := s.models
	s.models = nil
	s.mutex.Unlock()
	for _, model := range models {
		model.close(ctx, failure == nil)
	}
	s.end()
	_, err := call(ctx, s.connection, s.connection.sessions.FinishSession, request, how)
	return err
}

// newUUID is a random UUID, version 4.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}
