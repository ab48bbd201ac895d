"""Formats that hold a program and not only weights: translated, never run as they are."""
