"""Ingest galaxies of other formats into a survey: one module per format, and one gate that all of them pass."""
