"""The report of an evaluation: one HTML file that needs nothing else, to look at, to step through and to print."""
