package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// Postgres describes a throw-away Postgres server on loopback, which lets everybody in as user postgres.
type Postgres struct {
	Port int
	Dir  string // of the database and its log; made anew
}

// URL is how to connect to it.
func (p Postgres) URL() string {
	return fmt.Sprintf("postgres://postgres@%s/postgres?sslmode=disable", p.address())
}

func (p Postgres) address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.Port)) }

// Start makes a database and runs the server. It runs as user postgres where the caller is root, as which Postgres does not run.
func (p Postgres) Start(ctx context.Context) (*Process, error) {
	bin, err := postgresPrograms()
	if err != nil {
		return nil, err
	}
	// Who is root's folder the server may not enter; it gets one of its own.
	if err := os.MkdirAll(p.Dir, 0o755); err != nil {
		return nil, err
	}
	who, err := postgresUser()
	if err != nil {
		return nil, err
	}
	data := filepath.Join(p.Dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		return nil, err
	}
	if who != nil {
		if err := os.Chown(data, int(who.Uid), int(who.Gid)); err != nil {
			return nil, err
		}
	}
	initdb := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "--pgdata", data, "--username", "postgres", "--auth", "trust", "--no-sync", "--encoding", "UTF8", "--locale", "C")
	initdb.Dir, initdb.SysProcAttr = data, &syscall.SysProcAttr{Credential: who, Pdeathsig: syscall.SIGTERM}
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	return Start(ctx, Spec{
		Name: "postgres", Path: filepath.Join(bin, "postgres"), Dir: data, User: who, Log: filepath.Join(p.Dir, "postgres.log"),
		Args: []string{"-D", data, "-p", strconv.Itoa(p.Port), "-h", "127.0.0.1", "-k", "", "-F"},
		Ready: func(ctx context.Context, _ int) error {
			ready := exec.CommandContext(ctx, filepath.Join(bin, "pg_isready"), "-h", "127.0.0.1", "-p", strconv.Itoa(p.Port), "-t", "1")
			return ready.Run()
		},
	})
}

// postgresPrograms is where the newest version's are. Debian does not have them in the path.
func postgresPrograms() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(found) == 0 {
		return "", errors.Join(err, errors.New("no Postgres is installed: run make tools"))
	}
	return slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) }), nil
}

func version(bin string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(bin))) // any other name is older
	return n
}

func postgresUser() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, err
	}
	uid, errUID := strconv.ParseUint(u.Uid, 10, 32)
	gid, errGID := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(errUID, errGID)
}

// StopPostgres has the server end at once what it does; with Stop it waits for its clients.
func StopPostgres(p *Process) {
	_ = p.Signal(syscall.SIGINT) // Stop sees to it
	p.Stop(5 * time.Second)
}
