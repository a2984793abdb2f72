"""Block-wise work, whatever it is: launched, recorded, tried again, reported, read back and repaired."""
