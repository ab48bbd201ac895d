"""Real images that a user holds: what finished files are measured on, and what nothing ever learns from."""

from compress.pipeline.holdout.images import Holdout, open_holdout
from compress.pipeline.holdout.measurement import measure

__all__ = ["Holdout", "measure", "open_holdout"]
