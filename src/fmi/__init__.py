"""Communication between processes on machines behind NATs: rendezvous server, NAT traversal, channels, collectives."""

SECRET_VARIABLE = "FMI_SECRET"  # environment variable with the secret that the server and all ranks share
