package tinkergate

import (
	"context"
	"errors"
	"io"
	"iter"
	"math/rand/v2"
	"sync/atomic"

	v1 "tinkergate.example/tinkergate/v1"
)

// Source says what to sample or score with: at most one of the three names. Without any it is the
// gateway's default model.
type Source struct {
	SamplerID string
	BaseModel string
	ModelPath string
	// Backend is to serve a base model; empty leaves the choice to the gateway.
	Backend string
}

// SampleOptions say how to draw, and what to tell beside the tokens. What is zero or nil is left to
// the gateway.
type SampleOptions struct {
	// NumSamples is how many sequences; 1 if 0.
	NumSamples int
	// MaxTokens is the most tokens of each; up to the end of the model's context if 0.
	MaxTokens int
	// Temperature divides the logits; 0 takes the likeliest token; 1 if nil.
	Temperature *float32
	// TopK draws from the k likeliest tokens only.
	TopK int
	// TopP draws from the smallest set of likeliest tokens whose probability reaches p.
	TopP float32
	// Seed gives the same tokens for the same request.
	Seed *uint64
	// Stop is text that ends a sequence, beside the model's own end-of-sequence token. A list that
	// is empty but not nil switches even that off.
	Stop []string
	// StopTokens are token ids that end a sequence; not together with Stop.
	StopTokens []int32
	// PromptLogprobs tells the logprob of each prompt token.
	PromptLogprobs bool
	// TopKPromptLogprobs tells the k likeliest tokens of each prompt position.
	TopKPromptLogprobs int
	// TopKSampleLogprobs tells the k likeliest tokens of each sampled position.
	TopKSampleLogprobs int
}

// TopK are the k likeliest tokens of each position, likeliest first. Token 0 with logprob -99999
// means that there is none.
type TopK struct {
	// Tokens has K entries a position.
	Tokens []int32
	// Logprobs are theirs.
	Logprobs []float32
	K        int
}

// SampledSequence is one sequence that was drawn: views of the message.
type SampledSequence struct {
	// Tokens include the one that ended the sequence.
	Tokens []int32
	// Logprobs are of each token under logits / temperature, before top_k and top_p; nil if the
	// backend does not say.
	Logprobs []float32
	// StopReason is "stop" if a stop rule ended it, "length" if MaxTokens or the context did.
	StopReason string
	// TopK holds the likeliest tokens of each position, if asked for.
	TopK *TopK
}

// SampleResult are the sequences of one call, and what was asked about the prompt.
type SampleResult struct {
	Sequences []SampledSequence
	// PromptLogprobs has an entry a prompt token, NaN for the first; nil unless asked for.
	PromptLogprobs []float32
	// TopKPromptLogprobs has a row a prompt position; nil unless asked for.
	TopKPromptLogprobs *TopK
	// PromptCacheHitTokens is how many prompt tokens were found in a cache.
	PromptCacheHitTokens int
}

// Sampler draws from one fixed set of weights, and scores with it. Safe for concurrent use; many
// calls at once are worked on together.
type Sampler struct {
	// Source is what it samples from.
	Source     Source
	connection *connection
	// (sampler_id, seq_id) is a call's identity. A random block for each Sampler keeps programs
	// that share a sampler apart without asking anybody.
	seqIDs atomic.Int64
}

func newSampler(c *connection, source Source) (*Sampler, error) {
	named := 0
	for _, name := range []string{source.SamplerID, source.BaseModel, source.ModelPath} {
		if name != "" {
			named++
		}
	}
	if named > 1 {
		return nil, invalid("source", "names %d things; must name one", named)
	}
	if named == 0 {
		name, err := c.baseModel("")
		if err != nil {
			return nil, err
		}
		source.BaseModel = name
	}
	return samplerOf(c, source), nil
}

func samplerOf(c *connection, source Source) *Sampler {
	sampler := &Sampler{Source: source, connection: c}
	sampler.seqIDs.Store(rand.Int64N(1<<31) << 32)
	return sampler
}

// Sample draws sequences and waits for all. A context that ends stops the work.
func (s *Sampler) Sample(
	ctx context.Context, prompt *v1.ModelInput, options SampleOptions,
) (*SampleResult, error) {
	request, err := s.request(prompt, options)
	if err != nil {
		return nil, err
	}
	response, err := call(
		ctx, s.connection, s.connection.sampling.Sample, request, attempt{timeout: workTime})
	if err != nil {
		return nil, err
	}
	result := &SampleResult{PromptCacheHitTokens: int(response.PromptCacheHitTokens)}
	for _, sequence := range response.Sequences {
		read, err := readSequence(sequence)
		if err != nil {
			return nil, err
		}
		result.Sequences = append(result.Sequences, read)
	}
	if response.PromptLogprobs != nil {
		if result.PromptLogprobs, err = unpacked[float32](response.PromptLogprobs); err != nil {
			return nil, err
		}
	}
	result.TopKPromptLogprobs, err = readTopK(response.TopkPromptLogprobs)
	return result, err
}

// Stream draws sequences, each given with its index as soon as it is finished. Ending the loop
// early stops the work. What is asked about the prompt is not told here.
func (s *Sampler) Stream(
	ctx context.Context, prompt *v1.ModelInput, options SampleOptions,
) iter.Seq2[IndexedSequence, error] {
	return func(yield func(IndexedSequence, error) bool) {
		request, err := s.request(prompt, options)
		if err != nil {
			yield(IndexedSequence{}, err)
			return
		}
		seen := map[int32]bool{}
		ended := false
		err = readOn(ctx, s.connection, func(ctx context.Context, progress func()) error {
			events, err := s.connection.sampling.StreamSample(
				ctx, &v1.StreamSampleRequest{Request: request})
			if err != nil {
				return err
			}
			for {
				event, err := events.Recv()
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return err
				}
				found := event.GetSequence()
				if found == nil || seen[found.Index] {
					continue
				}
				seen[found.Index] = true
				progress()
				sequence, err := readSequence(found.Sequence)
				if err != nil {
					return err
				}
				if !yield(IndexedSequence{int(found.Index), sequence}, nil) {
					ended = true
					return nil
				}
			}
		})
		if err != nil && !ended {
			yield(IndexedSequence{}, err)
		}
	}
}

// IndexedSequence is a finished sequence and its place in the request.
type IndexedSequence struct {
	Index    int
	Sequence SampledSequence
}

func (s *Sampler) request(
	prompt *v1.ModelInput, options SampleOptions,
) (*v1.SampleRequest, error) {
	params := &v1.SamplingParams{Seed: options.Seed, Temperature: options.Temperature}
	if options.MaxTokens != 0 {
		params.MaxTokens = Ptr(int32(options.MaxTokens))
	}
	if options.TopK != 0 {
		params.TopK = Ptr(int32(options.TopK))
	}
	if options.TopP != 0 {
		params.TopP = Ptr(options.TopP)
	}
	switch {
	case options.Stop != nil && options.StopTokens != nil:
		return nil, invalid("stop", "is given as text and as tokens; must be one of them")
	case options.Stop != nil:
		params.Stop = &v1.SamplingParams_StopStrs{StopStrs: &v1.StopStrings{Values: options.Stop}}
	case options.StopTokens != nil:
		params.Stop = &v1.SamplingParams_StopTokens{
			StopTokens: &v1.StopTokens{Values: options.StopTokens},
		}
	}
	request := &v1.SampleRequest{
		Prompt: prompt, NumSamples: int32(max(options.NumSamples, 1)), SamplingParams: params,
		PromptLogprobs:     options.PromptLogprobs,
		TopkPromptLogprobs: int32(options.TopKPromptLogprobs),
		TopkSampleLogprobs: int32(options.TopKSampleLogprobs),
		Backend:            s.Source.Backend,
	}
	switch {
	case s.Source.SamplerID != "":
		request.Source = &v1.SampleRequest_SamplerId{SamplerId: s.Source.SamplerID}
		request.SeqId = Ptr(s.seqIDs.Add(1))
	case s.Source.ModelPath != "":
		request.Source = &v1.SampleRequest_ModelPath{ModelPath: s.Source.ModelPath}
	default:
		request.Source = &v1.SampleRequest_BaseModel{BaseModel: s.Source.BaseModel}
	}
	return request, nil
}

func readSequence(sequence *v1.SampledSequence) (SampledSequence, error) {
	made := SampledSequence{StopReason: "stop"}
	if sequence.StopReason == v1.StopReason_STOP_REASON_LENGTH {
		made.StopReason = "length"
	}
	var err error
	if made.Tokens, err = unpacked[int32](sequence.Tokens); err != nil {
		return made, err
	}
	if sequence.Logprobs != nil {
		if made.Logprobs, err = unpacked[float32](sequence.Logprobs); err != nil {
			return made, err
		}
	}
	made.TopK, err = readTopK(sequence.TopkSampledLogprobs)
	return made, err
}

func readTopK(table *v1.TopkLogprobs) (*TopK, error) {
	if table == nil {
		return nil, nil
	}
	tokens, err := unpacked[int32](table.TokenIds)
	if err != nil {
		return nil, err
	}
	logprobs, err := unpacked[float32](table.Logprobs)
	return &TopK{tokens, logprobs, int(table.K)}, err
}
