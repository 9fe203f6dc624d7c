"""Benchmarks, `cosmicai bench`: every figure is measured and comes with a description of the machine."""
