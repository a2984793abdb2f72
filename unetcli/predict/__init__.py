"""Class probabilities of volumes of any size."""
