"""Errors, geometry, files and processes: what every other package stands on; neither torch nor zarr."""
