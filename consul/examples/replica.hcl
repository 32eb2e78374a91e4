# Another node of the same shard, whose check asks the Redis itself. The agent needs enable_local_script_checks = true and
# redis-cli; -e makes an error reply, such as LOADING or MASTERDOWN, fail the check.
service {
  id      = "timelines-0-b"
  name    = "cachemesh-shard"
  address = "10.0.0.2"
  port    = 6379

  meta = {
    pool  = "timelines"
    shard = "timelines-0"
    zone  = "b"
  }

  check {
    name     = "redis-cli PING"
    args     = ["redis-cli", "-e", "-h", "10.0.0.2", "-p", "6379", "PING"]
    interval = "5s"
    timeout  = "1s"
  }
}
