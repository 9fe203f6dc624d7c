"""Fitting AstroMAE to the spectroscopic redshifts of a survey."""
