"""Volumes on disk: opening, reading, and writing as OME-Zarr."""
