# What the control planes' ACL token needs: to see the nodes that are registered, wherever they are.
service "cachemesh-shard" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}
