"""Errors, geometry, files and processes, used by every other package. Imports neither torch nor zarr."""
