package tinkergate

import (
	"context"
	"maps"
	"slices"

	v1 "tinkergate.example/tinkergate/v1"
)

// CustomLoss computes a loss of your own from the logprobs of each datum's target tokens, shaped
// like them.
type CustomLoss func(data []*v1.Datum, logprobs [][]float32) (LossValue, error)

// LossValue is a loss and its gradient.
type LossValue struct {
	// Loss is the value, a sum over the batch.
	Loss float64
	// Gradients holds the derivative of the loss by every logprob, shaped like them.
	Gradients [][]float32
	// Metrics are further figures, to be found in the result; names end with a reduction.
	Metrics map[string]float64
}

// ForwardBackwardCustom adds the gradient of a loss that is computed here. Two operations do it:
// Forward gives the logprobs, loss is called with them, and ForwardBackward of cross_entropy takes
// weights of minus the gradient: its loss is the sum of -weight * logprob, whose derivative by
// the logprobs is that gradient. Any loss of the target tokens' logprobs can be had so.
//
// data may have further loss inputs for the use of loss alone; only "target_tokens" is sent. The
// data is borrowed until the gradient is accepted. loss is called from another goroutine, and must
// not wait for work of this model, which waits for it. The place in the model's order is taken
// now: what is submitted afterwards, such as OptimStep, waits here until the gradient is sent. If
// Forward or loss fails, nothing is added, and what comes afterwards goes on.
//
// The result has the outputs of ForwardBackward, "loss:sum" as loss told it, and its metrics.
func (m *TrainingModel) ForwardBackwardCustom(
	data []*v1.Datum, loss CustomLoss,
) *Future[*ForwardBackwardResult] {
	data = slices.Clone(data)
	plain := make([]*v1.Datum, len(data))
	for i, datum := range data {
		plain[i] = withInputs(datum, nil)
	}
	var value LossValue // written before the gradient is sent, read once its result is there
	forward := m.Forward(plain, CrossEntropy, LossOptions{})
	return submit(m.submitter,
		func(operations []*v1.Operation) (*ForwardBackwardResult, error) {
			result, err := readForwardBackward(operations)
			if err == nil {
				maps.Copy(result.Metrics, value.Metrics)
				result.Metrics["loss:sum"] = value.Loss
			}
			return result, err
		},
		func(ctx context.Context) ([]modelRequest, error) {
			scored, err := forward.Wait(ctx)
			if err != nil {
				return nil, err
			}
			if value, err = loss(data, scored.Logprobs()); err != nil {
				return nil, err
			}
			weighted, err := againstGradients(data, scored.Logprobs(), value.Gradients)
			if err != nil {
				return nil, err
			}
			return m.forwardBackwards(weighted, CrossEntropy, LossOptions{})
		})
}

// againstGradients is data whose weights are minus the gradients.
func againstGradients(
	data []*v1.Datum, logprobs, gradients [][]float32,
) ([]*v1.Datum, error) {
	if len(gradients) != len(data) {
		return nil, invalid("gradients", "has %d entries; must have one a datum, %d",
			len(gradients), len(data))
	}
	weighted := make([]*v1.Datum, len(data))
	for i, gradient := range gradients {
		if len(gradient) != len(logprobs[i]) {
			return nil, invalid("gradients", "[%d] has %d entries; must have one a logprob, %d",
				i, len(gradient), len(logprobs[i]))
		}
		weights := make([]float32, len(gradient))
		for j, slope := range gradient {
			weights[j] = -slope
		}
		shape := data[i].LossFnInputs["target_tokens"].Shape
		weighted[i] = withInputs(data[i], Tensor(weights, shape...))
	}
	return weighted, nil
}

// withInputs is a datum with its targets, and weights if they are not nil.
func withInputs(datum *v1.Datum, weights *v1.Tensor) *v1.Datum {
	inputs := map[string]*v1.Tensor{}
	if targets := datum.LossFnInputs["target_tokens"]; targets != nil {
		inputs["target_tokens"] = targets
	}
	if weights != nil {
		inputs["weights"] = weights
	}
	return &v1.Datum{ModelInput: datum.ModelInput, LossFnInputs: inputs}
}
