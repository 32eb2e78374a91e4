# What the control planes' ACL token needs: to see the nodes that are registered, wherever they are.
service "cachemesh-shard" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}

# Coherent routes: to register where this region's agents listen for other regions (`sidecar --link`), and to see where theirs do. Without
# such routes it may be left out.
service "cachemesh-link" {
  policy = "write"
}

# To agree on who leads a region, and to keep its state. A session belongs to the node of the Consul agent that is asked, so
# its name may stand here instead of "".
key_prefix "cachemesh/" {
  policy = "write"
}

session_prefix "" {
  policy = "write"
}
