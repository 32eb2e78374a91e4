# A node of shard timelines-0, for the Consul agent on its host: put it in the agent's -config-dir and run `consul reload`.
# Consul tries to connect to it. Never set deregister_critical_service_after: a node that does not answer must stay registered.
service {
  id      = "timelines-0-a"
  name    = "cachemesh-shard"
  address = "10.0.0.1"
  port    = 6379

  meta = {
    pool  = "timelines"
    shard = "timelines-0"
    zone  = "a"
  }

  check {
    name     = "a connection to the Redis"
    tcp      = "10.0.0.1:6379"
    interval = "5s"
    timeout  = "1s"
  }
}
