package resp

import "strconv"

// AppendCommand appends a command as Redis reads it.
func AppendCommand(b []byte, args ...string) []byte {
	b = AppendArray(b, len(args))
	for _, a := range args {
		b = AppendBulk(b, a)
	}
	return b
}

// AppendArray appends the beginning of a command with so many arguments, its name included, which are to follow.
func AppendArray(b []byte, arguments int) []byte {
	return append(strconv.AppendInt(append(b, '*'), int64(arguments), 10), '\r', '\n')
}

// AppendBulk appends an argument.
func AppendBulk[T string | []byte](b []byte, value T) []byte {
	b = append(strconv.AppendInt(append(b, '$'), int64(len(value)), 10), '\r', '\n')
	return append(append(b, value...), '\r', '\n')
}

// AppendInt appends a number as an argument.
func AppendInt(b []byte, n int64) []byte {
	var digits [20]byte
	return AppendBulk(b, strconv.AppendInt(digits[:0], n, 10))
}
