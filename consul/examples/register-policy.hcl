# What the ACL token of `cachemesh shard register` and `deregister` needs. `shard list` needs that of the control planes.
service "cachemesh-shard" {
  policy = "write"
}
