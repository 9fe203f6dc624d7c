"""Compare the cost, speed and completeness of runs: those of this project and the published ones."""
