"""Lets processes on machines behind NATs talk to each other."""

SECRET = "FMI_SECRET"  # the environment variable with what the server and all ranks know
