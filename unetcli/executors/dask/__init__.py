"""Shares as batches of a Dask cluster."""
