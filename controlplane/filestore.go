package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// lookEvery is how often the folder of --state is looked at: for the lock, and by who does not have it for the state.
const lookEvery = 50 * time.Millisecond

// fileStore keeps the state in a folder. Who has locked a file there leads, for as long as it lives; the others read what it writes
// and wait. Without a folder it leads alone, and forgets.
type fileStore struct {
	shown
	dir       string
	advertise string // URL
	never     time.Time

	mu      sync.Mutex // not held by who asks what is shown: a disk may be slow
	leading bool
	lock    *os.File // held while leading
	record  record
	url     string      // the leader's
	seen    fs.FileInfo // the state file that record was read from
	err     error
}

func newFileStore(dir, advertise string) *fileStore {
	s := &fileStore{dir: dir, advertise: advertise, never: time.Now().Add(math.MaxInt64 / 2)}
	s.look()
	return s
}

func (s *fileStore) file() string { return filepath.Join(s.dir, stateFile) }

func (s *fileStore) run(ctx context.Context, changed func()) error {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			s.mu.Lock()
			s.letGo()
			s.showAll()
			s.mu.Unlock()
			changed()
			return ctx.Err()
		case <-ticker.C:
			if s.look() {
				changed()
			}
		}
	}
}

// look takes the lock if it is free, else reads what the leader has written. It says whether anything is different now.
func (s *fileStore) look() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = s.settle()
	return s.showAll()
}

func (s *fileStore) showAll() bool {
	now := standing{record: s.record, leader: s.url, problem: s.err}
	if s.leading {
		now.until = s.never
	}
	return s.show(now)
}

func (s *fileStore) settle() error {
	if s.dir == "" {
		s.leading, s.url = true, s.advertise
		return nil
	}
	if s.leading {
		err := s.holds()
		if err == nil {
			return nil
		}
		s.letGo()
		return err
	}
	lock, holder, err := lockState(s.dir)
	if err != nil {
		return fmt.Errorf("--state: %w", err)
	}
	s.url = holder
	// Whoever led before may have written until now: the state is read with the lock in hand.
	if err := s.load(); err != nil || lock == nil {
		lock.Close()
		return err
	}
	if err := writeLock(lock, s.advertise); err != nil {
		lock.Close()
		return fmt.Errorf("--state: %w", err)
	}
	s.leading, s.lock, s.url = true, lock, s.advertise
	return nil
}

// holds says whether the locked file is still the one that others would lock.
func (s *fileStore) holds() error {
	locked, err := s.lock.Stat()
	if err != nil {
		return fmt.Errorf("--state: %w", err)
	}
	there, err := os.Stat(s.lock.Name())
	if err != nil || !os.SameFile(locked, there) {
		return fmt.Errorf("--state: %s was removed or replaced while this control plane ran: leave the folder to it", s.lock.Name())
	}
	return nil
}

func (s *fileStore) letGo() {
	s.lock.Close()
	s.leading, s.lock, s.url = false, nil, ""
}

// load reads the state file unless it has done so already.
func (s *fileStore) load() error {
	info, err := os.Stat(s.file())
	if errors.Is(err, fs.ErrNotExist) {
		return nil // what is known stays: a leader writes it again with its next change
	}
	if err != nil {
		return fmt.Errorf("--state: %w", err)
	}
	if s.seen != nil && os.SameFile(info, s.seen) && info.ModTime().Equal(s.seen.ModTime()) && info.Size() == s.seen.Size() {
		return nil
	}
	data, err := os.ReadFile(s.file())
	if err != nil {
		return fmt.Errorf("--state: %w", err)
	}
	r, err := parseRecord(data)
	if err != nil {
		return fmt.Errorf("--state: %s: %w: put back a copy of it, or remove it, and the epochs that the nodes remember are taken", s.file(), err)
	}
	s.record, s.seen = r, info
	return nil
}

func (s *fileStore) write(_ context.Context, state []byte, revision uint64) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.leading {
		return 0, errNotLeading
	}
	if revision != s.record.Revision {
		return 0, errConflict
	}
	next, err := newRecord(state, revision+1, "")
	if err != nil {
		return 0, err
	}
	if s.dir != "" {
		if err := s.holds(); err != nil {
			return 0, fmt.Errorf("%w: %w", errNotLeading, err)
		}
		if err := next.save(s.file()); err != nil {
			return 0, fmt.Errorf("--state: %w", err)
		}
	}
	s.record = next
	s.showAll()
	return next.Revision, nil
}

// lockState locks a folder for this process, or returns what its holder advertises.
func lockState(dir string) (lock *os.File, holder string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, "", err
	}
	f, err := os.OpenFile(filepath.Join(dir, "state.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, "", err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, "", nil
	}
	defer f.Close()
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, "", fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	content, err := os.ReadFile(f.Name())
	return nil, strings.TrimSpace(string(content)), err
}

func writeLock(lock *os.File, advertise string) error {
	if err := lock.Truncate(0); err != nil {
		return err
	}
	_, err := lock.WriteAt([]byte(advertise+"\n"), 0)
	return err
}
