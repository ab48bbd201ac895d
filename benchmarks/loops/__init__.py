"""What `steps.py` measures: this project's loops, the same loops written naively, and the machine's own peak."""
