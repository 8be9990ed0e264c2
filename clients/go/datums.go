package tinkergate

import (
	"google.golang.org/protobuf/proto"

	v1 "tinkergate.example/tinkergate/v1"
)

// Text is a chunk of token ids, which are not copied.
func Text(tokens []int32) *v1.Chunk {
	return &v1.Chunk{Chunk: &v1.Chunk_EncodedText{
		EncodedText: &v1.EncodedTextChunk{Tokens: packed(tokens)},
	}}
}

// Image is a chunk that holds an encoded image; format is "png" or "jpeg".
func Image(data []byte, format string) *v1.Chunk {
	return &v1.Chunk{Chunk: &v1.Chunk_Image{Image: &v1.ImageChunk{Data: data, Format: format}}}
}

// ModelInput is what a model reads: chunks in reading order.
func ModelInput(chunks ...*v1.Chunk) *v1.ModelInput { return &v1.ModelInput{Chunks: chunks} }

// Tokens is a model input of token ids only, which are not copied.
func Tokens(tokens []int32) *v1.ModelInput { return ModelInput(Text(tokens)) }

// Datum is one training example, its targets already shifted: row i of every loss input is about
// the prediction after the inputs 0..i. The losses say which inputs they take: "target_tokens"
// always, such as "weights" and "advantages" beside it; make them by [Tensor].
func Datum(input *v1.ModelInput, lossInputs map[string]*v1.Tensor) *v1.Datum {
	return &v1.Datum{ModelInput: input.GetChunks(), LossFnInputs: lossInputs}
}

// SupervisedDatum is one example of text to learn: every token is predicted from those before it.
// tokens are the whole text, at least 2 of them; lossMask has a number a token: how much learning
// it counts, 0 for not at all. That of the first has no effect, since nothing comes before it.
// Neither is copied. Fails with [InvalidRequest].
func SupervisedDatum(tokens []int32, lossMask []float32) (*v1.Datum, error) {
	if len(tokens) < 2 {
		return nil, invalid("tokens", "has %d entries; must have at least 2", len(tokens))
	}
	if len(lossMask) != len(tokens) {
		return nil, invalid("loss_mask", "has %d entries; must have one a token, %d",
			len(lossMask), len(tokens))
	}
	for i, token := range tokens {
		if token < 0 {
			return nil, invalid("tokens", "[%d] is %d; must not be negative", i, token)
		}
	}
	return Datum(Tokens(tokens[:len(tokens)-1]), map[string]*v1.Tensor{
		"target_tokens": Tensor(tokens[1:]),
		"weights":       Tensor(lossMask[1:]),
	}), nil
}

// messageMargin is for the other fields of a request.
const messageMargin = 64 << 10

// split cuts data, in order, by the gateway's limits: a chunk is closed when the next datum would
// take it past ChunkDatums datums or ChunkBytes. A datum that is larger than that goes alone. Every
// `together` datums in a row are taken for one: 2 keeps pairs in one chunk. Fails with
// InvalidRequest for what no message can carry.
func split(data []*v1.Datum, limits *v1.Limits, together int) ([][]*v1.Datum, error) {
	largest := limits.MaxMessageBytes - messageMargin
	var chunks [][]*v1.Datum
	start, size := 0, int64(0)
	for index := 0; index < len(data); index += together {
		end := min(index+together, len(data))
		var bytes int64
		for _, datum := range data[index:end] {
			bytes += int64(proto.Size(datum))
		}
		if bytes > largest {
			failure := invalid("data", "[%d] takes %d bytes; a message carries at most %d",
				index, bytes, largest)
			failure.Reason = "TOO_LARGE"
			return nil, failure
		}
		full := end-start > int(limits.ChunkDatums) || size+bytes > limits.ChunkBytes
		if index > start && full {
			chunks = append(chunks, data[start:index])
			start, size = index, 0
		}
		size += bytes
	}
	return append(chunks, data[start:]), nil
}

// Ptr points to a value, for settings of which absent and zero are two things.
func Ptr[T any](value T) *T { return &value }
