package tinkergate

import (
	"fmt"
	"maps"
	"math"
	"strings"

	v1 "tinkergate.example/tinkergate/v1"
)

// ForwardBackwardResult is the outcome of Forward and ForwardBackward.
type ForwardBackwardResult struct {
	// Outputs holds, for each datum in order, its arrays by name: views of the message.
	Outputs []map[string]Array
	// Metrics are figures of the whole call by `name:reduction`; always "loss:sum".
	Metrics map[string]float64
	// OutputType is how the backend calls the form of Outputs.
	OutputType string
}

// Loss is the loss: a sum over all tokens of all datums.
func (r *ForwardBackwardResult) Loss() float64 { return r.Metrics["loss:sum"] }

// Logprobs are those of each datum's targets, row-major: views.
func (r *ForwardBackwardResult) Logprobs() [][]float32 {
	logprobs := make([][]float32, len(r.Outputs))
	for i, output := range r.Outputs {
		logprobs[i] = output["logprobs"].Floats
	}
	return logprobs
}

// OptimStepResult is the outcome of OptimStep.
type OptimStepResult struct {
	// Metrics are figures of the step, such as "grad_norm:mean", the global norm before clipping.
	Metrics map[string]float64
}

// readForwardBackward is the outcome of a call, from those of its chunks in order.
func readForwardBackward(operations []*v1.Operation) (*ForwardBackwardResult, error) {
	result := &ForwardBackwardResult{}
	var metrics []map[string]float64
	var counts []int
	for _, operation := range operations {
		chunk := operation.GetForwardBackward()
		before := len(result.Outputs)
		for _, record := range chunk.GetLossFnOutputs() {
			outputs, err := readRecord(record)
			if err != nil {
				return nil, err
			}
			result.Outputs = append(result.Outputs, outputs...)
		}
		metrics = append(metrics, chunk.GetMetrics())
		counts = append(counts, len(result.Outputs)-before)
		result.OutputType = chunk.GetLossFnOutputType()
	}
	result.Metrics = mergeMetrics(metrics, counts)
	return result, nil
}

func readRecord(record *v1.ArrayRecord) ([]map[string]Array, error) {
	count := int(record.NumDatums)
	columns := make(map[string][]Array, len(record.Fields))
	for name, field := range record.Fields {
		column, err := arrays(field)
		if err != nil {
			return nil, fmt.Errorf("output %q: %w", name, err)
		}
		if record.NumDatums == 0 {
			count = max(count, len(column))
		}
		columns[name] = column
	}
	outputs := make([]map[string]Array, count)
	for i := range outputs {
		outputs[i] = make(map[string]Array, len(columns))
		for name, column := range columns {
			if i >= len(column) {
				return nil, fmt.Errorf("output %q has %d arrays; must have %d", name, len(column), count)
			}
			outputs[i][name] = column[i]
		}
	}
	return outputs, nil
}

// readAny is the outcome of an operation of whatever kind: nil if it has nothing to tell.
func readAny(operations []*v1.Operation) (any, error) {
	switch result := operations[0].Result.(type) {
	case *v1.Operation_ForwardBackward:
		return readForwardBackward(operations)
	case *v1.Operation_OptimStep:
		return &OptimStepResult{result.OptimStep.Metrics}, nil
	case *v1.Operation_CreateModel:
		return result.CreateModel.ModelId, nil
	case *v1.Operation_SaveState:
		return result.SaveState.Path, nil
	case *v1.Operation_LoadState:
		return result.LoadState.Path, nil
	case *v1.Operation_SaveWeightsForSampler:
		if path := result.SaveWeightsForSampler.Path; path != "" {
			return path, nil
		}
		return result.SaveWeightsForSampler.SamplerId, nil
	case *v1.Operation_SaveWeightsExternal:
		return result.SaveWeightsExternal.Path, nil
	case *v1.Operation_InterpolateCheckpoints:
		return result.InterpolateCheckpoints.Path, nil
	case *v1.Operation_VlaTrainStep:
		return &OptimStepResult{result.VlaTrainStep.Metrics}, nil
	}
	return nil, nil
}

// mergeMetrics are the metrics of a call from those of its chunks, each figure by the reduction
// that its name ends with. datums are the chunks' sizes, the weights of means. Figures that a
// chunk lacks or whose reduction is unknown are left out; "unique" keeps each chunk's value, the
// later ones as name_1, name_2 and so on.
func mergeMetrics(chunks []map[string]float64, datums []int) map[string]float64 {
	if len(chunks) == 1 {
		return maps.Clone(chunks[0])
	}
	merged := map[string]float64{}
	for name := range chunks[0] {
		values := make([]float64, 0, len(chunks))
		for _, chunk := range chunks {
			if value, ok := chunk[name]; ok {
				values = append(values, value)
			}
		}
		if len(values) < len(chunks) {
			continue
		}
		reduction := name[strings.LastIndex(name, ":")+1:]
		if reduction == "unique" {
			merged[name] = values[0]
			for i, value := range values[1:] {
				merged[fmt.Sprintf("%s_%d", name, i+1)] = value
			}
		} else if value, ok := reduce(reduction, values, datums); ok {
			merged[name] = value
		}
	}
	return merged
}

func reduce(reduction string, values []float64, datums []int) (float64, bool) {
	var sum, weighted, count float64
	least, most := math.Inf(1), math.Inf(-1)
	for i, value := range values {
		sum += value
		weighted += value * float64(datums[i])
		count += float64(datums[i])
		least, most = min(least, value), max(most, value)
	}
	mean := weighted / max(count, 1)
	switch reduction {
	case "sum":
		return sum, true
	case "mean":
		return mean, true
	case "min":
		return least, true
	case "max":
		return most, true
	case "slack":
		return most - mean, true
	case "hash2":
		return math.Mod(sum, 0x1p64), true
	}
	return 0, false
}
