"""What a loss is made of, for people to watch."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class LossParts:
    """Means of the parts of a loss over many steps; they stay on their device until somebody asks."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def seen(self, name: str, value: Tensor) -> Tensor:
        """Count a scalar in and hand it on as it is."""
        self._sums[name] = value.detach() + self._sums.get(name, 0)
        self._counts[name] = self._counts.get(name, 0) + 1
        return value

    def state(self) -> dict[str, list[float]]:
        """Sum and count of every part, for a checkpoint; waits for the device."""
        return {name: [total.item(), self._counts[name]] for name, total in self._sums.items()}

    def restore(self, state: Mapping[str, Sequence[float]], device: torch.device) -> None:
        """Go on from what `state` gave."""
        self._sums = {name: torch.tensor(total, device=device) for name, (total, _) in state.items()}
        self._counts = {name: int(count) for name, (_, count) in state.items()}

    def take(self) -> dict[str, float]:
        """The mean of every part since the last call; waits for the device."""
        means = {name: total.item() / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means
