"""The U-Net and its model file."""
