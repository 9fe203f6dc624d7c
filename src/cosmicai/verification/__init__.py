"""Checks of an installation: its engines on synthetic galaxies, and the published results."""
