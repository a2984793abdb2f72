"""Planning of block-wise work: integers and frozen settings, computed before anything runs."""
