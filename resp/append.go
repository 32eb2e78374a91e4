package resp

import "strconv"

// AppendCommand appends a command.
func AppendCommand(b []byte, args ...string) []byte {
	b = AppendArray(b, len(args))
	for _, a := range args {
		b = AppendBulk(b, a)
	}
	return b
}

// AppendArray begins an array: n values follow.
func AppendArray(b []byte, n int) []byte {
	return append(strconv.AppendInt(append(b, '*'), int64(n), 10), '\r', '\n')
}

// AppendBulk appends a string of any bytes.
func AppendBulk[T string | []byte](b []byte, value T) []byte {
	b = append(strconv.AppendInt(append(b, '$'), int64(len(value)), 10), '\r', '\n')
	return append(append(b, value...), '\r', '\n')
}

// AppendInt appends a number as a string.
func AppendInt(b []byte, n int64) []byte {
	var digits [20]byte
	return AppendBulk(b, strconv.AppendInt(digits[:0], n, 10))
}
