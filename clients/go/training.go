package tinkergate

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "tinkergate.example/tinkergate/v1"
)

// CrossEntropy is the loss that text is learned by.
const CrossEntropy = "cross_entropy"

// TrainingModel is a LoRA adapter in training. Safe for concurrent use.
//
// Every method but Info sends its work off and returns a future at once. The gateway does the work
// of a model strictly in the order of the calls, so submit ForwardBackward and OptimStep without
// waiting in between, and ask for the results afterwards. Work that fails releases the next. A
// request that the gateway rejects changes nothing; its error is the future's.
type TrainingModel struct {
	// ModelID is the model's id, which is also that of its training run.
	ModelID string

	connection    *connection
	submitter     *submitter
	takeSamplerID func() int32
}

// Info is the model as the gateway knows it.
func (m *TrainingModel) Info(ctx context.Context) (*v1.Model, error) {
	answer, err := call(ctx, m.connection, m.connection.models.GetModel,
		&v1.GetModelRequest{ModelId: m.ModelID}, attempt{})
	return answer.GetModel(), err
}

// LossOptions say more on a loss than its name. The zero value has all defaults.
type LossOptions struct {
	// Config holds the loss's settings: float64 or string each.
	Config map[string]any
	// PerToken has OptimStep divide the gradients since the last one by the number of active
	// tokens behind them, once, before it clips them. The losses of results stay sums. Backends
	// that offer it say token_normalization in their capabilities.
	PerToken bool
}

// Forward computes logprobs and the loss, and no gradient. See ForwardBackward; PerToken has no
// effect here.
func (m *TrainingModel) Forward(
	data []*v1.Datum, loss string, options LossOptions,
) *Future[*ForwardBackwardResult] {
	requests, err := m.forwards(data, loss, options)
	return submit(m.submitter, readForwardBackward,
		func(context.Context) ([]modelRequest, error) { return requests, err })
}

func (m *TrainingModel) forwards(
	data []*v1.Datum, loss string, options LossOptions,
) ([]modelRequest, error) {
	config, err := configOf(options.Config)
	if err != nil {
		return nil, err
	}
	return m.chunked(data, loss, func(chunk []*v1.Datum) modelRequest {
		request := &v1.ForwardRequest{
			ModelId: m.ModelID, Data: chunk, LossFn: loss, LossFnConfig: config,
		}
		return requestOf(m.connection, m.connection.training.Forward, request, &request.SeqId)
	})
}

// ForwardBackward adds the gradient of the loss to those since the last optimizer step.
//
// The loss is a sum over all tokens of all datums. For a loss of pairs, such as "dpo", even datums
// are chosen and odd ones rejected. [Client.Capabilities] lists the losses that there are. A batch
// over the gateway's limits goes in chunks, whose results are put together again: it is accepted
// or rejected as a whole, but if the gateway fails in the middle of the work, the other chunks'
// gradients stay.
func (m *TrainingModel) ForwardBackward(
	data []*v1.Datum, loss string, options LossOptions,
) *Future[*ForwardBackwardResult] {
	requests, err := m.forwardBackwards(data, loss, options)
	return submit(m.submitter, readForwardBackward,
		func(context.Context) ([]modelRequest, error) { return requests, err })
}

func (m *TrainingModel) forwardBackwards(
	data []*v1.Datum, loss string, options LossOptions,
) ([]modelRequest, error) {
	config, err := configOf(options.Config)
	if err != nil {
		return nil, err
	}
	normalization := v1.Normalization_NORMALIZATION_SUM
	if options.PerToken {
		normalization = v1.Normalization_NORMALIZATION_PER_TOKEN
	}
	return m.chunked(data, loss, func(chunk []*v1.Datum) modelRequest {
		request := &v1.ForwardBackwardRequest{
			ModelId: m.ModelID, Data: chunk, LossFn: loss, LossFnConfig: config,
			Normalization: normalization,
		}
		return requestOf(
			m.connection, m.connection.training.ForwardBackward, request, &request.SeqId)
	})
}

func (m *TrainingModel) chunked(
	data []*v1.Datum, loss string, request func([]*v1.Datum) modelRequest,
) ([]modelRequest, error) {
	together := 1
	if m.connection.paired[loss] {
		together = 2
	}
	// The list is the caller's to use again; only the tensors are borrowed.
	chunks, err := split(slices.Clone(data), m.connection.limits, together)
	if err != nil {
		return nil, err
	}
	requests := make([]modelRequest, len(chunks))
	for i, chunk := range chunks {
		requests[i] = request(chunk)
	}
	return requests, nil
}

// OptimStep moves the weights by the gradients added up since the last step, then clears them.
// What is nil takes the contract's default, such as a learning rate of 1e-4 and no clipping.
func (m *TrainingModel) OptimStep(adam *v1.AdamParams) *Future[*OptimStepResult] {
	request := &v1.OptimStepRequest{ModelId: m.ModelID}
	if adam != nil {
		request.Optimizer = &v1.OptimStepRequest_Adam{Adam: adam}
	}
	return m.optimStep(request)
}

// OptimStepWith is OptimStep of another optimizer than AdamW.
func (m *TrainingModel) OptimStepWith(optimizer *v1.OptimizerParams) *Future[*OptimStepResult] {
	return m.optimStep(&v1.OptimStepRequest{
		ModelId: m.ModelID, Optimizer: &v1.OptimStepRequest_Other{Other: optimizer},
	})
}

func (m *TrainingModel) optimStep(request *v1.OptimStepRequest) *Future[*OptimStepResult] {
	return submitOne(m.submitter, m.connection.training.OptimStep, request, &request.SeqId,
		func(done *v1.Operation) *OptimStepResult {
			return &OptimStepResult{done.GetOptimStep().GetMetrics()}
		})
}

// SaveOptions say how weights are saved. The zero value has all defaults.
type SaveOptions struct {
	// TTL is after how long the gateway removes the checkpoint; 0 means never.
	TTL time.Duration
	// Overwrite replaces a checkpoint of that name; the operation fails otherwise.
	Overwrite bool
	// UserMetadata are your own notes.
	UserMetadata map[string]string
}

func (o SaveOptions) ttl() *durationpb.Duration {
	if o.TTL == 0 {
		return nil
	}
	return durationpb.New(o.TTL)
}

// SaveState saves weights and optimizer state; the result is the checkpoint's path. Without a name
// the gateway chooses one.
func (m *TrainingModel) SaveState(name string, options SaveOptions) *Future[string] {
	request := &v1.SaveStateRequest{
		ModelId: m.ModelID, Name: name, Ttl: options.ttl(), Overwrite: options.Overwrite,
		UserMetadata: options.UserMetadata,
	}
	return submitOne(m.submitter, m.connection.training.SaveState, request, &request.SeqId,
		func(done *v1.Operation) string { return done.GetSaveState().GetPath() })
}

// LoadState replaces the weights by a checkpoint's, and clears the gradients; the result is its
// path. The optimizer goes on where the checkpoint's was, or starts anew.
func (m *TrainingModel) LoadState(path string, withOptimizer bool) *Future[string] {
	request := &v1.LoadStateRequest{ModelId: m.ModelID, Path: path, WithOptimizer: withOptimizer}
	return submitOne(m.submitter, m.connection.training.LoadState, request, &request.SeqId,
		func(done *v1.Operation) string { return done.GetLoadState().GetPath() })
}

// SaveWeightsForSampler freezes the weights as they are at this point in the order; the result
// samples from them. With a name they are kept as a checkpoint ([Source.ModelPath]); without, they
// live as long as the session.
func (m *TrainingModel) SaveWeightsForSampler(name string, options SaveOptions) *Future[*Sampler] {
	request := &v1.SaveWeightsForSamplerRequest{
		ModelId: m.ModelID, Name: name, Ttl: options.ttl(), Overwrite: options.Overwrite,
		UserMetadata: options.UserMetadata,
	}
	if name == "" {
		request.SamplerSeqId = Ptr(m.takeSamplerID())
	}
	return submitOne(
		m.submitter, m.connection.training.SaveWeightsForSampler, request, &request.SeqId,
		func(done *v1.Operation) *Sampler {
			saved := done.GetSaveWeightsForSampler()
			return samplerOf(m.connection, Source{SamplerID: saved.GetSamplerId(), ModelPath: saved.GetPath()})
		})
}

// SaveWeightsExternal saves the weights as an adapter to be taken elsewhere; the result is the
// checkpoint's path. Backends that offer it say external_weights in their capabilities.
func (m *TrainingModel) SaveWeightsExternal(name string, options SaveOptions) *Future[string] {
	request := &v1.SaveWeightsExternalRequest{
		ModelId: m.ModelID, Name: name, Ttl: options.ttl(), Overwrite: options.Overwrite,
		UserMetadata: options.UserMetadata,
	}
	return submitOne(m.submitter, m.connection.training.SaveWeightsExternal, request, &request.SeqId,
		func(done *v1.Operation) string { return done.GetSaveWeightsExternal().GetPath() })
}

// Unload frees the model's memory after everything submitted before. Its checkpoints and samplers
// stay. The result is the model's id.
func (m *TrainingModel) Unload() *Future[string] {
	request := &v1.UnloadModelRequest{ModelId: m.ModelID}
	return submitOne(m.submitter, m.connection.models.UnloadModel, request, nil,
		func(done *v1.Operation) string { return done.GetUnloadModel().GetModelId() })
}

// close submits nothing more; drain first waits until everything submitted before is done.
func (m *TrainingModel) close(ctx context.Context, drain bool) {
	if drain && m.submitter.isUsed() {
		// Fails if the model is unloaded already, or gone with its session: nothing to wait for.
		_, _ = m.Unload().Wait(ctx)
	}
	m.submitter.close()
}

func configOf(config map[string]any) (map[string]*v1.ConfigValue, error) {
	made := make(map[string]*v1.ConfigValue, len(config))
	for name, value := range config {
		switch value := value.(type) {
		case string:
			made[name] = &v1.ConfigValue{Value: &v1.ConfigValue_Text{Text: value}}
		case float64:
			made[name] = &v1.ConfigValue{Value: &v1.ConfigValue_Number{Number: value}}
		case int:
			made[name] = &v1.ConfigValue{Value: &v1.ConfigValue_Number{Number: float64(value)}}
		default:
			return nil, invalid("config", "%q is a %T; must be a number or a string", name, value)
		}
	}
	return made, nil
}
