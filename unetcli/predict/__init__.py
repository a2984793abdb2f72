"""Probabilities of volumes of any size."""
