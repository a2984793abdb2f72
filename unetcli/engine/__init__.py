"""Predictions under way: launched, worked at, recorded, looked at, mended and closed."""
