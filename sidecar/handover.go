package sidecar

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"
)

// An agent that is to take the place of another, in the same folder and beside the same Envoy, asks for it on handoverSocket, in lines:
//
//	new → old  replace
//	old → new  released   it holds no lock, relays no xDS and looks after no Envoy any more; its lanes and stand-ins still answer
//	new → old  moved      Envoy has acknowledged the lanes of the new one
//
// The old one then ends when the last connection to it has, and its end of the connection closes.
const (
	handoverSocket = "agent.sock"
	replaceLine    = "replace\n"
	releasedLine   = "released\n"
	movedLine      = "moved\n"
)

const (
	// releaseWithin bounds how long an agent may take to let go of all but its sockets.
	releaseWithin = 10 * time.Second
	// moveWithin bounds how long it then waits for Envoy to move: to reach the new one, it comes back to xDS.
	moveWithin = 15 * time.Second
	// moveGrace is for Envoy's workers, which follow an acknowledged change some milliseconds later.
	moveGrace = 500 * time.Millisecond
)

// errSuperseded says that another agent takes this one's place.
var errSuperseded = errors.New("another agent takes its place")

// enter makes this process the agent of the folder. If it takes another's place, a connection to that one is returned too.
func enter(ctx context.Context, c Config) (held *os.File, before *net.UnixConn, err error) {
	held, err = lock(c.Dir)
	if !c.Replace || !errors.Is(err, errLocked) {
		return held, nil, err
	}
	c.Logger.Info("taking the place of an agent", "because", err)
	conn, failed := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(c.Dir, handoverSocket))
	if failed != nil {
		return nil, nil, fmt.Errorf("%w; it cannot be replaced while it runs: %w", err, failed)
	}
	before = conn.(*net.UnixConn)
	if err := askRelease(before); err != nil {
		before.Close()
		return nil, nil, fmt.Errorf("the agent that runs in %s does not make way: %w", c.Dir, err)
	}
	if held, err = lock(c.Dir); err != nil {
		before.Close()
		return nil, nil, err
	}
	return held, before, nil
}

func askRelease(conn *net.UnixConn) error {
	if _, err := conn.Write([]byte(replaceLine)); err != nil {
		return err
	}
	return expectLine(conn, releasedLine, releaseWithin)
}

func expectLine(conn *net.UnixConn, want string, within time.Duration) error {
	if err := conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	got, err := bufio.NewReaderSize(conn, len(want)).ReadString('\n')
	if err == nil && got != want {
		err = fmt.Errorf("it says %q instead of %q", got, want)
	}
	return err
}

// listenHandover listens for a successor, on a socket that may still be there from an agent that was killed.
func listenHandover(dir string) (*net.UnixListener, error) {
	path := filepath.Join(dir, handoverSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// successor waits for an agent that asks to take this one's place; nil if the listener is closed before.
func successor(l *net.UnixListener) *net.UnixConn {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil
		}
		if expectLine(conn, replaceLine, time.Second) == nil {
			return conn
		}
		conn.Close()
	}
}

// leave ends the service of an agent that has let go of everything else, when Envoy uses it no more.
func (a *agent) leave(ctx context.Context, next *net.UnixConn) {
	defer next.Close()
	stop := context.AfterFunc(ctx, func() { next.Close() })
	defer stop()
	if _, err := next.Write([]byte(releasedLine)); err != nil {
		a.config.Logger.Error("another agent was to take this one's place, and has gone", "error", err)
	}
	if err := expectLine(next, movedLine, moveWithin); err != nil {
		a.config.Logger.Warn("Envoy may still use this agent's lanes, which end", "error", err)
	}
	ctx, cancel := context.WithTimeout(ctx, moveGrace+a.config.DrainTimeout)
	defer cancel()
	select {
	case <-ctx.Done():
	case <-time.After(moveGrace):
	}
	a.lanes.drain(ctx)
	a.standIns.drain(ctx)
}

// succeed tells the agent before, if there is one, that Envoy has moved, and removes the lanes of agents before when nothing uses them.
func (a *agent) succeed(ctx context.Context, before *net.UnixConn) {
	if before != nil {
		defer before.Close()
		stop := context.AfterFunc(ctx, func() { before.Close() })
		defer stop()
	}
	select {
	case <-a.relay.settled:
	case <-ctx.Done():
		return
	}
	if before != nil {
		_, _ = before.Write([]byte(movedLine)) // if it is gone, nothing waits
		_ = before.SetReadDeadline(time.Now().Add(moveWithin))
		_, _ = before.Read(make([]byte, 1)) // until it has ended
		a.config.Logger.Info("the agent before has ended")
	}
	if ctx.Err() == nil {
		a.lanes.tidy(a.config.Dir)
	}
}
