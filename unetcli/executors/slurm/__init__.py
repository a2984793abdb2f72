"""Execution of shares as elements of a SLURM job array."""
