"""Train the U-Net of Ronneberger, Fischer and Brox (2015), apply it to Zarr volumes of any size, score the result."""

__version__ = "0.1.0"
