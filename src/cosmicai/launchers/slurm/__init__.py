"""Runs on SLURM clusters: what sites offer, submission, the queue and the accounting."""
