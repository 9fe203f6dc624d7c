"""Training of AstroMAE on the spectroscopic redshifts of a survey."""
