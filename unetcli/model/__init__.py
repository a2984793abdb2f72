"""The paper's network, its file, and its prediction of blocks."""
