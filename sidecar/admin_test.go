package sidecar

import (
	"strings"
	"testing"
)

func TestConnectionsAreThoseOfApplications(t *testing.T) {
	got, err := countConnections(strings.Join([]string{
		"listener.127.0.0.1_6379.downstream_cx_active: 3",
		"listener.127.0.0.1_6379.worker_0.downstream_cx_active: 2",
		"listener.127.0.0.1_6379.worker_1.downstream_cx_active: 1",
		"listener.redis.sock.downstream_cx_active: 1",
		"listener.admin.downstream_cx_active: 1",
		"listener.admin.main_thread.downstream_cx_active: 1", ""}, "\n"))
	if err != nil || got != 4 {
		t.Errorf("%d connections, error %v, want 4", got, err)
	}
}
