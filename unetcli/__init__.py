"""Train the U-Net of Ronneberger, Fischer and Brox (2015), apply it to volumes of any size, and score the result."""

__version__ = "0.1.0"
