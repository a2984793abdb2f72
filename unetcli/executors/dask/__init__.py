"""Execution of blocks in batches on a Dask cluster."""
