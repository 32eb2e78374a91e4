package node_test

import "github.com/cachemesh/cachemesh/process"

const deadAddress = "127.0.0.1:1"

// managed is a Redis as a node is to be started.
func managed() process.Redis {
	return process.Redis{Args: []string{"--replicaof", "127.0.0.1", "1", "--replica-serve-stale-data", "no"}}
}
