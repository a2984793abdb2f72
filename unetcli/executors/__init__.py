"""Executors run blocks somewhere: in this process, on a Dask cluster, as a SLURM job array."""
