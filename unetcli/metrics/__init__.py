"""Measures of the challenges: arrays in, counts that add up over sections out, scores from the counts."""
