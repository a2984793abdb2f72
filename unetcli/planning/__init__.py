"""What will run, as integers and frozen choices, before anything does."""
