package tinkergate

import (
	"cmp"
	"context"
	"iter"
	"slices"

	v1 "tinkergate.example/tinkergate/v1"
)

const (
	defaultBatchTokens = 8192
	batchSequences     = 1024
	defaultInFlight    = 4
)

// ScoreOptions say how to score. The zero value has all defaults.
type ScoreOptions struct {
	// Temperature divides the logits; 1 if 0.
	Temperature float64
	// TopK tells the k likeliest tokens of each position too.
	TopK int
	// BatchTokens is the most tokens of one request, unless one sequence has more; 8192 if 0.
	BatchTokens int
	// InFlight is the most requests at once; 4 if 0.
	InFlight int
}

// Score are the scores of one sequence: views of the message.
type Score struct {
	// Logprobs are of each token given those before it; NaN for the first.
	Logprobs []float32
	// TopK holds the likeliest tokens of each position, if asked for.
	TopK *TopK
}

// Score gives the logprob of every token of every sequence given those before it.
func (s *Sampler) Score(
	ctx context.Context, sequences [][]int32, options ScoreOptions,
) ([]Score, error) {
	scores := make([]Score, 0, len(sequences))
	for score, err := range s.ScoreStream(ctx, slices.Values(sequences), options) {
		if err != nil {
			return nil, err
		}
		scores = append(scores, score)
	}
	return scores, nil
}

// ScoreStream is Score for more than fits in memory: sequences are taken as scores are asked for,
// and scores come in the same order. Ending the loop early gives up what is in flight.
func (s *Sampler) ScoreStream(
	ctx context.Context, sequences iter.Seq[[]int32], options ScoreOptions,
) iter.Seq2[Score, error] {
	type answer struct {
		scores []Score
		err    error
	}
	inFlight := cmp.Or(options.InFlight, defaultInFlight)
	// An answer has a token id and a logprob for each of the k, and must fit into a message.
	batchTokens := min(
		cmp.Or(options.BatchTokens, defaultBatchTokens), messageBytes/2/(8*options.TopK+4))
	return func(yield func(Score, error) bool) {
		if inFlight < 1 || batchTokens < 1 || options.TopK < 0 {
			yield(Score{}, invalid("options", "are %+v; must be positive", options))
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		var pending []chan answer
		// handOn gives the oldest batch; false if the loop is over.
		handOn := func() bool {
			next := <-pending[0]
			pending = pending[1:]
			for _, score := range next.scores {
				if !yield(score, nil) {
					return false
				}
			}
			if next.err != nil {
				yield(Score{}, next.err)
			}
			return next.err == nil
		}
		for batch := range batchesOf(sequences, batchTokens) {
			if len(pending) == inFlight && !handOn() {
				return
			}
			arrival := make(chan answer, 1)
			pending = append(pending, arrival)
			request := s.scoreRequest(batch, options)
			go func() {
				scores, err := s.scoreBatch(ctx, request)
				arrival <- answer{scores, err}
			}()
		}
		for len(pending) > 0 {
			if !handOn() {
				return
			}
		}
	}
}

func batchesOf(sequences iter.Seq[[]int32], most int) iter.Seq[[][]int32] {
	return func(yield func([][]int32) bool) {
		var batch [][]int32
		size := 0
		for sequence := range sequences {
			full := size+len(sequence) > most || len(batch) == batchSequences
			if len(batch) > 0 && full {
				if !yield(batch) {
					return
				}
				batch, size = nil, 0
			}
			batch = append(batch, sequence)
			size += len(sequence)
		}
		if len(batch) > 0 {
			yield(batch)
		}
	}
}

func (s *Sampler) scoreRequest(batch [][]int32, options ScoreOptions) *v1.ScoreRequest {
	request := &v1.ScoreRequest{
		Tokens: batchedTokens(batch), Topk: int32(options.TopK), Backend: s.Source.Backend,
	}
	if options.Temperature != 0 {
		request.Temperature = &options.Temperature
	}
	switch {
	case s.Source.SamplerID != "":
		request.Source = &v1.ScoreRequest_SamplerId{SamplerId: s.Source.SamplerID}
	case s.Source.ModelPath != "":
		request.Source = &v1.ScoreRequest_ModelPath{ModelPath: s.Source.ModelPath}
	default:
		request.Source = &v1.ScoreRequest_BaseModel{BaseModel: s.Source.BaseModel}
	}
	return request
}

func (s *Sampler) scoreBatch(ctx context.Context, request *v1.ScoreRequest) ([]Score, error) {
	response, err := call(
		ctx, s.connection, s.connection.scoring.Score, request, attempt{timeout: workTime})
	if err != nil {
		return nil, err
	}
	logprobs, err := RaggedFloats(response.Logprobs)
	if err != nil {
		return nil, err
	}
	scores := make([]Score, logprobs.Len())
	for i := range scores {
		scores[i].Logprobs = logprobs.At(i)
	}
	if response.TopkTokens == nil {
		return scores, nil
	}
	tokens, err := ragged(response.TopkTokens, func(bytes []byte, _ v1.DType) ([]int32, error) {
		return unpacked[int32](bytes)
	})
	if err != nil {
		return nil, err
	}
	values, err := RaggedFloats(response.TopkLogprobs)
	if err != nil {
		return nil, err
	}
	for i := range scores {
		scores[i].TopK = &TopK{tokens.At(i), values.At(i), tokens.Width}
	}
	return scores, nil
}
