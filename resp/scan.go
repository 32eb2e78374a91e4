package resp

// Span is a part of a buffer.
type Span struct{ From, To int }

// Of returns the part of b.
func (s Span) Of(b []byte) []byte { return b[s.From:s.To] }

// Scanner finds commands in a buffer that fills as bytes arrive, without copying them. A command that is not there whole is gone
// on with where it ended the last time. The zero Scanner is ready.
type Scanner struct {
	// Args are the name and the arguments of the command that Next found, as parts of its buffer.
	Args []Span

	pos     int // all before is understood
	left    int // arguments that are to come
	size    int // of the argument at pos; -1 if its length is to come
	command bool
}

// Next looks for a command at the beginning of b and returns how many bytes it takes, 0 if it is not there whole; b must then be given
// again, with more at its end. maxArgs bounds the arguments with the command's name. What is no command is an *Error.
func (s *Scanner) Next(b []byte, maxArgs int) (int, error) {
	for !s.command {
		n, next, err := scanLength(b, s.pos, '*')
		if err != nil || next == 0 {
			return 0, err
		}
		if n > maxArgs {
			return 0, broken("a command of %d arguments, and %d is the limit", n, maxArgs)
		}
		s.pos = next
		if n > 0 { // an empty array asks for nothing
			s.command, s.left, s.size, s.Args = true, n, -1, s.Args[:0]
		}
	}
	for s.left > 0 {
		if s.size < 0 {
			n, next, err := scanLength(b, s.pos, '$')
			if err != nil || next == 0 {
				return 0, err
			}
			s.pos, s.size = next, n
		}
		end := s.pos + s.size
		if len(b) > end && b[end] != '\r' || len(b) > end+1 && b[end+1] != '\n' {
			return 0, broken("a bulk string is longer than its %d bytes", s.size)
		}
		if len(b) < end+2 {
			return 0, nil
		}
		s.Args = append(s.Args, Span{s.pos, end})
		s.pos, s.size = end+2, -1
		s.left--
	}
	n := s.pos
	s.pos, s.command = 0, false
	return n, nil
}

// Needs is a lower bound of the length of the command that Next found incomplete.
func (s *Scanner) Needs() int {
	if s.command && s.size >= 0 {
		return s.pos + s.size + 2
	}
	return s.pos + 1
}

// Reset forgets a command that is not complete.
func (s *Scanner) Reset() { *s = Scanner{Args: s.Args[:0]} }

// scanLength reads a line of a type byte and a length at b[at:]; next is where the line after begins, 0 if there is no whole line.
func scanLength(b []byte, at int, kind byte) (n, next int, err error) {
	if at == len(b) {
		return 0, 0, nil
	}
	if b[at] != kind {
		return 0, 0, broken("want %q, got %q: commands are arrays of bulk strings", kind, b[at])
	}
	for i := at + 1; i < len(b); i++ {
		c := b[i]
		switch {
		case c >= '0' && c <= '9' && i-at <= maxDigits:
			n = n*10 + int(c-'0')
		case c == '\r' && i > at+1:
			if i+1 == len(b) {
				return 0, 0, nil
			}
			if b[i+1] != '\n' {
				return 0, 0, broken("want the end of a line, got %q", b[i+1])
			}
			return n, i + 2, nil
		default:
			return 0, 0, broken("a length after %q has at most %d digits, got %q", kind, maxDigits, c)
		}
	}
	return 0, 0, nil
}
