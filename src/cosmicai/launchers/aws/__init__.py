"""Runs on AWS: the stack, the way to it, and what it tells."""
