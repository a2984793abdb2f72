"""Volumes on disk: found, opened, read, and written as OME-Zarr."""
