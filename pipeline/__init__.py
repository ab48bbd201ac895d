"""The staged pipeline; `run.py` reads as its table of contents."""
