"""Shares of images: with their intervals, and in words."""

import math

import numpy as np
from numpy.typing import NDArray

from compress.pipeline import metrics
from compress.pipeline.records import Proportion


def percent(share: float) -> str:
    """`0.96449` as `96.4 %`: rounded down, so that no number shown clears a limit that the exact one misses."""
    return f"{math.floor(share * 1000 + 1e-9) / 10:.1f} %"


def proportion(successes: int, total: int, design_effect: float = 1.0) -> Proportion:
    """A share with its 95 % Wilson interval; of nothing, 0 with the interval [0, 1].

    Where images are alike, so many of them, the `design_effect`, tell as much as one.
    """
    low, high = metrics.wilson_interval(successes / design_effect, total / design_effect)
    return Proportion(
        value=successes / total if total else 0.0, low=low, high=high, total=total, design_effect=design_effect
    )


def proportion_of(successes: metrics.Mask, groups: NDArray[np.integer]) -> Proportion:
    """The share of images `[N]` that succeed, where those of one group `[N]` are alike."""
    return proportion(int(successes.sum()), len(successes), metrics.design_effect(successes, groups))


def images_to_settle(part: Proportion, limit: float) -> int | None:
    """How many such images the interval leaves `limit` out with, if the share stays; None where they are equal."""
    needed = metrics.probes_to_settle(part.value, limit)
    return None if needed is None else math.ceil(needed * part.design_effect)
