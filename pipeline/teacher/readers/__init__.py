"""Files of weights, and what every file has in common: its bytes, its format, and tensors found in it; nothing is executed."""
