"""Fuzzing of the command line: damaged files and odd options, generated from a seed."""
