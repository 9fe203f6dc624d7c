"""Runs on this machine: scheduling, supervision and resources of its ranks."""
