"""What will run, as integers and frozen settings, before anything does."""
