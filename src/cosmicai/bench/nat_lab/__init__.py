"""A laboratory for NAT traversal: hosts and NATs in network namespaces, for `cosmicai bench fmi` and tests alone."""
