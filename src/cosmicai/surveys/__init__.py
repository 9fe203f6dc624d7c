"""Surveys of galaxies: their shards, formats, ingestion, quality flags and synthetic galaxies."""
