"""Cosmic AI: photometric redshifts for millions of galaxy cutouts, on whatever machines you have."""

__version__ = "0.1.0"
