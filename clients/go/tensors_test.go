package tinkergate_test

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"

	"tinkergate.example/tinkergate"
	v1 "tinkergate.example/tinkergate/v1"
)

func TestTensorsAreViews(t *testing.T) {
	values := []float32{1, float32(math.Inf(-1)), 3}
	tensor := tinkergate.Tensor(values)
	values[0] = 4
	read := get[[]float32](t)(tinkergate.Floats(tensor))
	if !slices.Equal(read, values) || !slices.Equal(tensor.Shape, []int64{3}) {
		t.Errorf("%v became %v of shape %v", values, read, tensor.Shape)
	}
	if bits := binary.LittleEndian.Uint32(tensor.GetDense()[8:]); bits != math.Float32bits(3) {
		t.Errorf("the third element is packed as %x", bits)
	}
	if ints := get[[]int64](t)(tinkergate.Ints(tinkergate.Tensor([]int32{-1, 7}))); !slices.Equal(
		ints, []int64{-1, 7}) {
		t.Errorf("int32 is read as %v", ints)
	}
	if count := testing.AllocsPerRun(10, func() {
		_, _ = tinkergate.Floats(tensor)
	}); count != 0 {
		t.Errorf("reading allocates %v times", count)
	}
}

func TestOddBytesAreReadToo(t *testing.T) {
	shifted := make([]byte, 13)
	binary.LittleEndian.PutUint32(shifted[1:], math.Float32bits(2.5))
	tensor := &v1.Tensor{
		Encoding: &v1.Tensor_Dense{Dense: shifted[1:5]}, Dtype: v1.DType_DTYPE_FLOAT32,
	}
	if read := get[[]float32](t)(tinkergate.Floats(tensor)); read[0] != 2.5 {
		t.Errorf("unaligned 2.5 is read as %v", read)
	}
	tensor = &v1.Tensor{
		Encoding: &v1.Tensor_Dense{Dense: []byte{0x80, 0x3f, 0xc0, 0x7f}},
		Dtype:    v1.DType_DTYPE_BFLOAT16,
	}
	read := get[[]float32](t)(tinkergate.Floats(tensor))
	if len(read) != 2 || read[0] != 1 || !math.IsNaN(float64(read[1])) {
		t.Errorf("bfloat16 1 and NaN are read as %v", read)
	}
}

func sparse(shape, rows, columns []int64, values ...float32) *v1.Tensor {
	return &v1.Tensor{
		Encoding: &v1.Tensor_SparseCsr{SparseCsr: &v1.SparseCsr{
			Values:      tinkergate.Tensor(values).GetDense(),
			CrowIndices: tinkergate.Tensor(rows).GetDense(),
			ColIndices:  tinkergate.Tensor(columns).GetDense(),
		}},
		Dtype: v1.DType_DTYPE_FLOAT32, Shape: shape,
	}
}

func TestSparseTensorsAreFilledOut(t *testing.T) {
	good := sparse([]int64{2, 3}, []int64{0, 1, 3}, []int64{2, 0, 1}, 5, 6, 7)
	if read := get[[]float32](t)(tinkergate.Floats(good)); !slices.Equal(
		read, []float32{0, 0, 5, 6, 7, 0}) {
		t.Errorf("read as %v", read)
	}
	for name, tensor := range map[string]*v1.Tensor{
		"a column too far":    sparse([]int64{1, 2}, []int64{0, 1}, []int64{2}, 5),
		"rows that fall":      sparse([]int64{2, 2}, []int64{0, 2, 1}, []int64{0}, 5),
		"rows past the end":   sparse([]int64{2, 2}, []int64{0, 9, 1}, []int64{0}, 5),
		"a row too few":       sparse([]int64{2, 2}, []int64{0, 1}, []int64{0}, 5),
		"a shape too large":   sparse([]int64{1, 1 << 40}, []int64{0, 1}, []int64{0}, 5),
		"a negative extent":   sparse([]int64{-1, 2}, []int64{}, []int64{}),
		"half an element":     {Encoding: &v1.Tensor_Dense{Dense: []byte{1}}, Dtype: v1.DType_DTYPE_FLOAT32},
		"no type":             {Encoding: &v1.Tensor_Dense{Dense: []byte{1}}},
		"a shape that is off": {Encoding: &v1.Tensor_Dense{}, Dtype: v1.DType_DTYPE_FLOAT32, Shape: []int64{2}},
	} {
		if read, err := tinkergate.Floats(tensor); err == nil {
			t.Errorf("%s is read as %v", name, read)
		}
	}
}

func batched(offsets []int64, trailing []int64, values ...float32) *v1.BatchedTensor {
	return &v1.BatchedTensor{
		Data:    tinkergate.Tensor(values).GetDense(),
		Offsets: tinkergate.Tensor(offsets).GetDense(),
		Dtype:   v1.DType_DTYPE_FLOAT32, TrailingShape: trailing,
	}
}

func TestRaggedArraysAreViews(t *testing.T) {
	read := get[tinkergate.Ragged[float32]](t)(
		tinkergate.RaggedFloats(batched([]int64{0, 8, 8, 24}, []int64{2}, 1, 2, 3, 4, 5, 6)))
	if read.Len() != 3 || read.Width != 2 || len(read.At(1)) != 0 ||
		!slices.Equal(read.At(0), []float32{1, 2}) || !slices.Equal(read.At(2), []float32{3, 4, 5, 6}) {
		t.Errorf("read as %+v", read)
	}
	for name, tensor := range map[string]*v1.BatchedTensor{
		"half a row":        batched([]int64{0, 4, 8}, []int64{2}, 1, 2),
		"no end":            batched([]int64{0, 4}, nil, 1, 2),
		"no offsets":        batched(nil, nil),
		"offsets that fall": batched([]int64{0, 8, 4, 8}, nil, 1, 2),
	} {
		if read, err := tinkergate.RaggedFloats(tensor); err == nil {
			t.Errorf("%s is read as %+v", name, read)
		}
	}
}

func TestSupervisedDatumsAreShifted(t *testing.T) {
	datum := get[*v1.Datum](t)(tinkergate.SupervisedDatum([]int32{5, 6, 7}, []float32{9, 0, 1}))
	input := datum.ModelInput[0].GetEncodedText().Tokens
	if binary.LittleEndian.Uint32(input) != 5 || len(input) != 8 {
		t.Errorf("the input is %v", input)
	}
	targets := get[[]int64](t)(tinkergate.Ints(datum.LossFnInputs["target_tokens"]))
	weights := get[[]float32](t)(tinkergate.Floats(datum.LossFnInputs["weights"]))
	if !slices.Equal(targets, []int64{6, 7}) || !slices.Equal(weights, []float32{0, 1}) {
		t.Errorf("targets are %v, weights %v", targets, weights)
	}
	for _, tokens := range [][]int32{nil, {1}, {1, 2}, {1, -2, 3}} {
		if _, err := tinkergate.SupervisedDatum(tokens, make([]float32, 3)); err == nil {
			t.Errorf("%v is taken", tokens)
		}
	}
}
