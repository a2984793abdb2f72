"""Evaluate a prediction against the truth, block by block, so that memory does not grow with the volume."""
