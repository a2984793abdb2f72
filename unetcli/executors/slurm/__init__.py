"""Shares as elements of a SLURM job array."""
