package source

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
)

const (
	// A page of a file has so many lines, or about so many bytes.
	fileLines = 2000
	fileBytes = 1 << 20
	maxLine   = 2*MaxValue + 1<<20
)

// file is lines of JSON, see docs/loader.md.
type file struct {
	path   string
	prefix []byte
}

func (f *file) List(ctx context.Context, cursor, until string) (Page, error) {
	p := Page{}
	p.Began = time.Now()
	err := lines(ctx, f.path, cursor, until, &p, func(line []byte) error {
		var e entry
		if err := json.Unmarshal(line, &e); err != nil {
			return err
		}
		if e.Key != nil && !bytes.HasPrefix([]byte(*e.Key), f.prefix) {
			return nil
		}
		return e.add(&p.Batch)
	})
	return p, err
}

func (f *file) Fetch(context.Context, [][]byte) (Batch, error) {
	return Batch{}, fmt.Errorf("%w: a file of values cannot be asked for single keys", ErrKeys)
}

func (f *file) Close() {}

// keyFile lists the keys of a file, of which another source has the values.
type keyFile struct {
	Source
	path   string
	prefix []byte
}

func (f *keyFile) List(ctx context.Context, cursor, until string) (Page, error) {
	p := Page{}
	err := lines(ctx, f.path, cursor, until, &p, func(line []byte) error {
		if bytes.HasPrefix(line, f.prefix) {
			p.Named = append(p.Named, bytes.Clone(line))
		}
		return nil
	})
	return p, err
}

// lines reads a page of a file from a place in it, in bytes, and says where the next begins.
func lines(ctx context.Context, path, cursor, until string, p *Page, each func(line []byte) error) error {
	at, err := offset(cursor, 0)
	if err != nil {
		return err
	}
	end, err := offset(until, 1<<62)
	if err != nil {
		return err
	}
	opened, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%w: a file that is to be where the agents are: %w", ErrKeys, err)
	}
	defer opened.Close()
	info, err := opened.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: %s is not a file", ErrKeys, path)
	}
	if _, err := opened.Seek(at, io.SeekStart); err != nil {
		return err
	}
	r := bufio.NewReaderSize(opened, 64<<10)
	begun := at
	for n := 0; at < end; {
		if n == fileLines || at-begun > fileBytes || ctx.Err() != nil {
			p.Next = []string{strconv.FormatInt(at, 10)}
			if cursor == "" && n > 0 {
				p.Keys = uint64(info.Size() * int64(n) / (at - begun))
			}
			return ctx.Err()
		}
		line, err := readLine(r)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: %s at byte %d: %w", ErrKeys, path, at, err)
		}
		text := bytes.TrimRight(line, "\r\n")
		if len(text) > 0 {
			n++
			if err := each(text); err != nil {
				return fmt.Errorf("%w: %s at byte %d: %w", ErrKeys, path, at, err)
			}
		}
		if at += int64(len(line)); err != nil {
			break
		}
	}
	if cursor == "" {
		p.Keys = uint64(len(p.Items) + len(p.Named))
	}
	return nil
}

func readLine(r *bufio.Reader) ([]byte, error) {
	var all []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(all)+len(part) > maxLine {
			return nil, fmt.Errorf("a line has more than %d bytes", maxLine)
		}
		if err == nil && all == nil {
			return part, nil
		}
		all = append(all, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return all, err
		}
	}
}

func offset(cursor string, none int64) (int64, error) {
	if cursor == "" {
		return none, nil
	}
	n, err := strconv.ParseInt(cursor, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%w: %q is no place in a file", ErrKeys, cursor)
	}
	return n, nil
}
