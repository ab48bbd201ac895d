"""The curves of distillation for TensorBoard, where somebody asked for them."""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from compress.pipeline.errors import MissingResourceError
from compress.pipeline.records import HistoryPoint

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
"""Beside the stages' folders, in none of them: event files are named after time and host."""

GROUPS = {"kd_steps": "progress", "pool_images": "progress", "seconds": "progress", "learning_rate": "progress"}
"""Of curves that are neither loss nor agreement."""


def require_tensorboard() -> None:
    """See that the package is there before hours are spent.

    Raises:
        MissingResourceError: it is not.
    """
    if find_spec("tensorboard") is None:
        raise MissingResourceError(
            "TensorBoard is not installed.",
            "Install it with pip install 'compress-edge[tensorboard]', or leave --tensorboard out: metrics.jsonl has the "
            "same curves.",
        )


class Curves:
    """Writes a point of every curve after each round, as events in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: SummaryWriter | None = None

    def add(self, point: HistoryPoint) -> None:
        """Add a round. The first one hides those from it on that an interrupted or another run left in the folder."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=point.round)
        for name, value in point.model_dump(exclude={"round"}).items():
            if value is not None and math.isfinite(value):
                self._writer.add_scalar(tag(name), value, point.round)
        self._writer.flush()

    def close(self) -> None:
        """Leave the files whole."""
        if self._writer is not None:
            self._writer.close()


def tag(name: str) -> str:
    """The name of a field's curve, under the heading that TensorBoard shows it below."""
    group = GROUPS.get(name, "loss" if name.endswith("_loss") else "agreement")
    return f"{group}/{name}"
