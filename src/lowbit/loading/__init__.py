"""From a model file to a model in memory: what the file holds is found, checked, and packed or left in the file."""
