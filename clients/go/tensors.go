package tinkergate

import (
	"encoding/binary"
	"fmt"
	"math"
	"unsafe"

	v1 "tinkergate.example/tinkergate/v1"
)

// Element is what tensors are made of here.
type Element interface{ float32 | int64 | int32 }

var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

func sizeOf[T Element]() int {
	var element T
	return int(unsafe.Sizeof(element))
}

func dtypeOf[T Element]() v1.DType {
	var element T
	switch any(element).(type) {
	case float32:
		return v1.DType_DTYPE_FLOAT32
	case int64:
		return v1.DType_DTYPE_INT64
	}
	return v1.DType_DTYPE_INT32
}

// Tensor is a dense tensor of values, row-major, in that shape; one dimension without a shape.
// The values are not copied. A shape that does not fit them is refused by the gateway.
func Tensor[T Element](values []T, shape ...int64) *v1.Tensor {
	if len(shape) == 0 {
		shape = []int64{int64(len(values))}
	}
	return &v1.Tensor{
		Encoding: &v1.Tensor_Dense{Dense: packed(values)}, Dtype: dtypeOf[T](), Shape: shape,
	}
}

// packed are the bytes of values, little-endian: the same memory, where that is so already.
func packed[T Element](values []T) []byte {
	if len(values) == 0 {
		return []byte{}
	}
	bytes := unsafe.Slice((*byte)(unsafe.Pointer(&values[0])), len(values)*sizeOf[T]())
	if littleEndian {
		return bytes
	}
	return swapped(bytes, sizeOf[T]())
}

// unpacked are bytes as values: the same memory, where it can be read as them.
func unpacked[T Element](bytes []byte) ([]T, error) {
	size := sizeOf[T]()
	if len(bytes)%size != 0 {
		return nil, fmt.Errorf("%d bytes are no multiple of the %d of an element", len(bytes), size)
	}
	if len(bytes) == 0 {
		return []T{}, nil
	}
	if !littleEndian {
		bytes = swapped(bytes, size)
	}
	start := unsafe.Pointer(&bytes[0])
	if uintptr(start)%uintptr(size) == 0 {
		return unsafe.Slice((*T)(start), len(bytes)/size), nil
	}
	values := make([]T, len(bytes)/size)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&values[0])), len(bytes)), bytes)
	return values, nil
}

func swapped(bytes []byte, size int) []byte {
	turned := make([]byte, len(bytes))
	for i := range bytes {
		turned[i] = bytes[i-i%size+size-1-i%size]
	}
	return turned
}

// Floats are the elements of a tensor of float32 or bfloat16, row-major: a view of a dense
// tensor of float32. Unlisted elements of a sparse one are 0.
func Floats(tensor *v1.Tensor) ([]float32, error) {
	if tensor.GetDtype() != v1.DType_DTYPE_FLOAT32 && tensor.GetDtype() != v1.DType_DTYPE_BFLOAT16 {
		return nil, fmt.Errorf("tensor: dtype is %s; must be float32 or bfloat16", tensor.GetDtype())
	}
	return elements(tensor, floats)
}

// Ints are the elements of a tensor of int64 or int32, row-major: a view of a dense tensor of
// int64. Unlisted elements of a sparse one are 0.
func Ints(tensor *v1.Tensor) ([]int64, error) {
	if tensor.GetDtype() != v1.DType_DTYPE_INT64 && tensor.GetDtype() != v1.DType_DTYPE_INT32 {
		return nil, fmt.Errorf("tensor: dtype is %s; must be int64 or int32", tensor.GetDtype())
	}
	return elements(tensor, ints)
}

func elements[T Element](
	tensor *v1.Tensor, read func([]byte, v1.DType) ([]T, error),
) ([]T, error) {
	csr := tensor.GetSparseCsr()
	if csr == nil {
		values, err := read(tensor.GetDense(), tensor.Dtype)
		if err != nil {
			return nil, fmt.Errorf("tensor: %w", err)
		}
		if count := product(tensor.Shape); len(tensor.Shape) > 0 && count != int64(len(values)) {
			return nil, fmt.Errorf("tensor: shape is %v; dense holds %d elements", tensor.Shape, len(values))
		}
		return values, nil
	}
	values, err := read(csr.Values, tensor.Dtype)
	if err != nil {
		return nil, fmt.Errorf("tensor: %w", err)
	}
	rows, err := unpacked[int64](csr.CrowIndices)
	if err != nil {
		return nil, fmt.Errorf("tensor: crow_indices: %w", err)
	}
	columns, err := unpacked[int64](csr.ColIndices)
	if err != nil {
		return nil, fmt.Errorf("tensor: col_indices: %w", err)
	}
	return filled(tensor.Shape, values, rows, columns)
}

// maxElements bounds what a sparse tensor fills out to: a small message cannot ask for much memory.
const maxElements = 1 << 28

func filled[T Element](shape []int64, values []T, rows, columns []int64) ([]T, error) {
	if len(shape) != 2 || int64(len(rows)) != shape[0]+1 || len(columns) != len(values) {
		return nil, fmt.Errorf("tensor: %d rows and %d columns do not fit shape %v and %d values",
			len(rows), len(columns), shape, len(values))
	}
	if count := product(shape); count < 0 || count > maxElements {
		return nil, fmt.Errorf("tensor: shape is %v; at most %d elements are allowed", shape, maxElements)
	}
	if rows[0] != 0 || rows[len(rows)-1] != int64(len(values)) {
		return nil, fmt.Errorf("tensor: crow_indices must rise from 0 to %d", len(values))
	}
	dense := make([]T, product(shape))
	for row := range len(rows) - 1 {
		if rows[row] > rows[row+1] || rows[row+1] > int64(len(values)) {
			return nil, fmt.Errorf("tensor: crow_indices must rise from 0 to %d", len(values))
		}
		for place := rows[row]; place < rows[row+1]; place++ {
			if columns[place] < 0 || columns[place] >= shape[1] {
				return nil, fmt.Errorf("tensor: col_indices must lie in 0..%d", shape[1]-1)
			}
			dense[int64(row)*shape[1]+columns[place]] = values[place]
		}
	}
	return dense, nil
}

func floats(bytes []byte, dtype v1.DType) ([]float32, error) {
	if dtype != v1.DType_DTYPE_BFLOAT16 {
		return unpacked[float32](bytes)
	}
	if len(bytes)%2 != 0 {
		return nil, fmt.Errorf("%d bytes are no multiple of the 2 of bfloat16", len(bytes))
	}
	wide := make([]float32, len(bytes)/2)
	for i := range wide {
		wide[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(bytes[2*i:])) << 16)
	}
	return wide, nil
}

func ints(bytes []byte, dtype v1.DType) ([]int64, error) {
	if dtype != v1.DType_DTYPE_INT32 {
		return unpacked[int64](bytes)
	}
	narrow, err := unpacked[int32](bytes)
	wide := make([]int64, len(narrow))
	for i, value := range narrow {
		wide[i] = int64(value)
	}
	return wide, err
}

// product is how many elements a shape has; -1 if an extent is negative, or they are too many.
func product(shape []int64) int64 {
	count := int64(1)
	for _, extent := range shape {
		if extent < 0 || (extent > 0 && count > math.MaxInt64/extent) {
			return -1
		}
		count *= extent
	}
	return count
}
