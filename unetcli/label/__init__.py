"""From probabilities to instances: objects found block by block, and merged as if the volume had been one array."""
