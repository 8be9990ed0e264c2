package tinkergate_test

import (
	"errors"
	"math"
	"testing"

	"tinkergate.example/tinkergate"
	v1 "tinkergate.example/tinkergate/v1"
)

// ownCrossEntropy is the loss by the datums' own weights, written here.
func ownCrossEntropy(data []*v1.Datum, logprobs [][]float32) (tinkergate.LossValue, error) {
	value := tinkergate.LossValue{Metrics: map[string]float64{"own:sum": 7}}
	for i, datum := range data {
		weights, err := tinkergate.Floats(datum.LossFnInputs["weights"])
		if err != nil {
			return value, err
		}
		gradient := make([]float32, len(weights))
		for j, weight := range weights {
			value.Loss -= float64(weight * logprobs[i][j])
			gradient[j] = -weight
		}
		value.Gradients = append(value.Gradients, gradient)
	}
	return value, nil
}

func TestCustomLossesKeepTheirPlace(t *testing.T) {
	_, session := connected(t, address)
	expected := train(t, newModel(t, session), 4, nothing)
	model := newModel(t, session)
	var gradients []*tinkergate.Future[*tinkergate.ForwardBackwardResult]
	for range expected {
		gradients = append(gradients, model.ForwardBackwardCustom(examples(t), ownCrossEntropy))
		model.OptimStep(adam)
	}
	for step, gradient := range gradients {
		result := wait(t, gradient)
		if math.Abs(result.Loss()-expected[step]) > 1e-5 || result.Metrics["own:sum"] != 7 {
			t.Errorf("step %d has %v; the built-in loss is %v", step, result.Metrics, expected[step])
		}
	}
}

func TestCustomLossesThatFailAddNothing(t *testing.T) {
	_, session := connected(t, address)
	model := newModel(t, session)
	wrong := errors.New("no such preference")
	failed := model.ForwardBackwardCustom(examples(t),
		func([]*v1.Datum, [][]float32) (tinkergate.LossValue, error) {
			return tinkergate.LossValue{}, wrong
		})
	misfit := model.ForwardBackwardCustom(examples(t),
		func([]*v1.Datum, [][]float32) (tinkergate.LossValue, error) {
			return tinkergate.LossValue{Gradients: [][]float32{{1}}}, nil
		})
	step := model.OptimStep(adam)
	if _, err := failed.Wait(t.Context()); !errors.Is(err, wrong) {
		t.Errorf("the future fails with %v", err)
	}
	if _, err := misfit.Wait(t.Context()); !errors.Is(err, tinkergate.InvalidRequest) {
		t.Errorf("gradients that do not fit fail with %v", err)
	}
	if norm := wait(t, step).Metrics["grad_norm:mean"]; norm != 0 {
		t.Errorf("the step had a gradient of norm %v", norm)
	}
}
