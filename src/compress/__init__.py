"""Data-free model compression for the edge: a teacher and its class names in, a verified edge model out."""

__version__ = "0.1.0"
