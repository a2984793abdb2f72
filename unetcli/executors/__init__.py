"""Executors, which run blocks in this process, on a Dask cluster or as a SLURM job array."""
