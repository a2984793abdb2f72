"""Instance segmentation of probability maps, block by block; the labels equal those of the whole volume at once."""
