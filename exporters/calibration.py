"""Chooses the range of every quantized tensor from images.

Candidates are the smallest and largest value, two percentiles, and the range of least squared error on a histogram; the
one with the least squared error on images that no candidate was made from wins, tensor by tensor.
Source: Nagel et al., "A White Paper on Neural Network Quantization", arXiv 2106.08295, section 3.1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from compress.exporters.qdq import (
    SMALLEST_SCALE,
    ActivationQuantizer,
    Levels,
    activation_quantizers,
)
from compress.pipeline.errors import CompressError

BINS = 2048
PERCENTILES = (0.999, 0.9999)
SHRINKAGES = 100

Range = tuple[float, float]


@dataclass(frozen=True)
class Histogram:
    """How often values fell into equally wide bins between `low` and `high`. `counts` is float64 `[BINS]`."""

    low: float
    high: float
    counts: Tensor

    @property
    def centres(self) -> Tensor:
        """The middle of each bin, float64 `[BINS]`."""
        width = (self.high - self.low) / BINS
        return self.low + width * (torch.arange(BINS, dtype=torch.float64) + 0.5)

    def percentile_range(self, share: float) -> Range:
        """The range that holds this share of the values, as many left out below as above."""
        cumulative = self.counts.cumsum(0) / self.counts.sum()
        outside = (1 - share) / 2
        width = (self.high - self.low) / BINS
        below = int((cumulative <= outside).sum())
        above = int((cumulative >= 1 - outside).sum()) - 1
        return self.low + width * below, self.high - width * above

    def least_squares_range(self, levels: Levels) -> Range:
        """The full range, shrunk to the hundredth that costs the least squared error of rounding and clipping."""
        ranges = [(self.low * step / SHRINKAGES, self.high * step / SHRINKAGES) for step in range(1, SHRINKAGES + 1)]
        parameters = torch.tensor([levels.parameters(*bounds) for bounds in ranges], dtype=torch.float64)
        scales, zero_points = parameters.unsqueeze(-1).unbind(1)
        errors = squared_error(self.centres, scales, zero_points, levels) @ self.counts
        return ranges[int(errors.argmin())]

    def candidates(self, levels: Levels) -> list[Range]:
        """The ranges to choose from."""
        percentiles = [self.percentile_range(share) for share in PERCENTILES]
        return [(self.low, self.high), *percentiles, self.least_squares_range(levels)]


def squared_error(values: Tensor, scale: Tensor | float, zero_point: Tensor | float, levels: Levels) -> Tensor:
    """What quantizing costs each value: (x - scale * (clamp(round(x / scale) + zero_point) - zero_point))^2."""
    rounded = (torch.round(values / scale) + zero_point).clamp(levels.lowest, levels.highest)
    return (values - scale * (rounded - zero_point)) ** 2


def observe(module: fx.GraphModule, batches: Sequence[Tensor]) -> None:
    """Sets the range of every activation quantizer from images `[N, C, H, W]`, float32 in [0, 1], in batches.

    Every second batch is held out to choose among the candidates. The float values of the tensors are observed, one
    batch at a time; nothing but a histogram of each is kept.

    Raises:
        CompressError: fewer than two batches, or a tensor is not finite.
    """
    if len(batches) < 2:
        raise CompressError("Calibration needs at least two batches of images.", "Make the batches smaller.")
    fitting, choosing = batches[0::2], batches[1::2]
    quantizers = activation_quantizers(module)
    histograms = _histograms(module, fitting, _bounds(module, fitting))
    candidates = {name: histograms[name].candidates(quantizers[name].levels) for name in quantizers}
    errors = {name: [0.0] * len(ranges) for name, ranges in candidates.items()}

    def add_errors(name: str, values: Tensor) -> None:
        levels = quantizers[name].levels
        for index, bounds in enumerate(candidates[name]):
            error = squared_error(values, *levels.parameters(*bounds), levels)
            errors[name][index] += float(error.sum())

    _visit(module, choosing, add_errors)
    for name, quantizer in quantizers.items():
        best = min(range(len(errors[name])), key=errors[name].__getitem__)
        quantizer.set_range(*candidates[name][best])


def _bounds(module: fx.GraphModule, batches: Sequence[Tensor]) -> dict[str, Range]:
    bounds: dict[str, Range] = {}

    def widen(name: str, values: Tensor) -> None:
        low, high = (float(bound) for bound in values.aminmax())
        if not torch.isfinite(values.sum()):
            raise CompressError(f"The tensor '{name}' is not finite on calibration images.", "The student is broken.")
        before = bounds.get(name, (low, high))
        bounds[name] = min(low, before[0]), max(high, before[1])

    _visit(module, batches, widen)
    return bounds


def _histograms(module: fx.GraphModule, batches: Sequence[Tensor], bounds: dict[str, Range]) -> dict[str, Histogram]:
    counts = {name: torch.zeros(BINS, dtype=torch.float64) for name in bounds}

    def count(name: str, values: Tensor) -> None:
        low, high = bounds[name]
        bins = ((values - low) * (BINS / max(high - low, SMALLEST_SCALE))).int().clamp_(0, BINS - 1)
        counts[name] += bins.flatten().bincount(minlength=BINS).cpu()

    _visit(module, batches, count)
    return {name: Histogram(*bounds[name], counts[name]) for name in bounds}


@torch.no_grad()
def _visit(module: fx.GraphModule, batches: Sequence[Tensor], see: Callable[[str, Tensor], None]) -> None:
    """Runs the batches without rounding any activation, and shows each tensor that would be rounded."""

    def hook(name: str) -> Callable[[ActivationQuantizer, tuple[Tensor], Tensor], Tensor]:
        def show(_: ActivationQuantizer, inputs: tuple[Tensor], __: Tensor) -> Tensor:
            see(name, inputs[0])
            return inputs[0]

        return show

    quantizers = activation_quantizers(module)
    handles = [quantizer.register_forward_hook(hook(name)) for name, quantizer in quantizers.items()]
    try:
        for images in batches:
            module(images)
    finally:
        for handle in handles:
            handle.remove()
