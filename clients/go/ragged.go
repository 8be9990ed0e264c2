package tinkergate

import (
	"fmt"

	v1 "tinkergate.example/tinkergate/v1"
)

// Array is one named array of one datum: a view of the message that it came in. One of Floats and
// Ints is set.
type Array struct {
	// Floats are the elements of an array of float32 or bfloat16, row-major.
	Floats []float32
	// Ints are the elements of an array of int64 or int32, row-major.
	Ints []int64
	// Width is how many elements a row has: 1 for (N,), K for (N, K).
	Width int
}

// Row is row i of an array of floats.
func (a Array) Row(i int) []float32 { return a.Floats[i*a.Width : (i+1)*a.Width] }

// Ragged are arrays of several datums that lie end to end.
type Ragged[T Element] struct {
	values []T
	// ends has one more entry than there are arrays.
	ends []int64
	// Width is how many elements a row has.
	Width int
}

// Len is how many arrays there are.
func (r Ragged[T]) Len() int { return len(r.ends) - 1 }

// At is array i, row-major: a view.
func (r Ragged[T]) At(i int) []T {
	return r.values[r.ends[i]:r.ends[i+1]:r.ends[i+1]]
}

// RaggedFloats reads a batched tensor of float32 or bfloat16.
func RaggedFloats(batched *v1.BatchedTensor) (Ragged[float32], error) {
	if d := batched.GetDtype(); d != v1.DType_DTYPE_FLOAT32 && d != v1.DType_DTYPE_BFLOAT16 {
		return Ragged[float32]{}, fmt.Errorf("batched tensor: dtype is %s; must be a float's", d)
	}
	return ragged(batched, floats)
}

// RaggedInts reads a batched tensor of int64 or int32.
func RaggedInts(batched *v1.BatchedTensor) (Ragged[int64], error) {
	if d := batched.GetDtype(); d != v1.DType_DTYPE_INT64 && d != v1.DType_DTYPE_INT32 {
		return Ragged[int64]{}, fmt.Errorf("batched tensor: dtype is %s; must be an integer's", d)
	}
	return ragged(batched, ints)
}

func ragged[T Element](
	batched *v1.BatchedTensor, read func([]byte, v1.DType) ([]T, error),
) (Ragged[T], error) {
	none := Ragged[T]{}
	values, err := read(batched.Data, batched.Dtype)
	if err != nil {
		return none, fmt.Errorf("batched tensor: %w", err)
	}
	offsets, err := unpacked[int64](batched.Offsets)
	if err != nil {
		return none, fmt.Errorf("batched tensor: offsets: %w", err)
	}
	width := product(batched.TrailingShape)
	if width < 0 || len(offsets) == 0 || offsets[0] != 0 ||
		offsets[len(offsets)-1] != int64(len(batched.Data)) {
		return none, fmt.Errorf("batched tensor: offsets and trailing shape do not fit the data")
	}
	size := int64(itemSize(batched.Dtype))
	ends := make([]int64, len(offsets))
	for i, offset := range offsets {
		if offset%(size*max(width, 1)) != 0 || (i > 0 && offset < offsets[i-1]) {
			return none, fmt.Errorf("batched tensor: offsets[%d] is %d; must rise in whole rows", i, offset)
		}
		ends[i] = offset / size
	}
	return Ragged[T]{values, ends, int(width)}, nil
}

func itemSize(dtype v1.DType) int {
	switch dtype {
	case v1.DType_DTYPE_INT64:
		return 8
	case v1.DType_DTYPE_BFLOAT16:
		return 2
	}
	return 4
}

// batchedTokens lays sequences end to end, which copies them.
func batchedTokens(sequences [][]int32) *v1.BatchedTensor {
	offsets := make([]int64, 1, len(sequences)+1)
	var total int
	for _, sequence := range sequences {
		total += len(sequence)
		offsets = append(offsets, int64(4*total))
	}
	flat := make([]int32, 0, total)
	for _, sequence := range sequences {
		flat = append(flat, sequence...)
	}
	return &v1.BatchedTensor{
		Data: packed(flat), Offsets: packed(offsets), Dtype: v1.DType_DTYPE_INT32,
	}
}

// arrays are the arrays of a batched tensor of any type.
func arrays(batched *v1.BatchedTensor) ([]Array, error) {
	switch batched.Dtype {
	case v1.DType_DTYPE_INT32, v1.DType_DTYPE_INT64:
		read, err := RaggedInts(batched)
		if err != nil {
			return nil, err
		}
		each := make([]Array, read.Len())
		for i := range each {
			each[i] = Array{Ints: read.At(i), Width: read.Width}
		}
		return each, nil
	}
	read, err := RaggedFloats(batched)
	if err != nil {
		return nil, err
	}
	each := make([]Array, read.Len())
	for i := range each {
		each[i] = Array{Floats: read.At(i), Width: read.Width}
	}
	return each, nil
}
