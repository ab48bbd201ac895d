"""`metrics.jsonl`: the history of distillation while it is made, one JSON object a round, for `tail -f` and notebooks.

The history that the checkpoint holds is the truth. A run that continues writes the file anew from it, so no round comes
twice and none that was lost with a crash is left.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from compress.exporters.bundle import write_file
from compress.pipeline.records import HistoryPoint

METRICS_FILE = "metrics.jsonl"


def restart_metrics(folder: Path, history: Sequence[HistoryPoint]) -> None:
    """Let the file hold these rounds and no others."""
    write_file(folder / METRICS_FILE, "".join(map(metrics_line, history)).encode())


def append_metrics(folder: Path, point: HistoryPoint) -> None:
    """Add a round; the line is there for others to read when this returns."""
    with (folder / METRICS_FILE).open("a", encoding="utf-8") as file:
        file.write(metrics_line(point))


def metrics_line(point: HistoryPoint) -> str:
    """The round as JSON that any reader takes: what is not measured or not finite is null."""
    content = point.model_dump(mode="json")
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in content.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
