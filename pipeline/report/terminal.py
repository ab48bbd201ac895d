"""The table at the end of the command."""

from typing import TYPE_CHECKING

from compress.pipeline.records import ArtifactFidelity, ValidateRecord
from compress.pipeline.report import text

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

STYLES = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}


def render_table(validation: ValidateRecord) -> "Table":
    """Artifact, size, agreement with its 95 % interval, latency and verdict; the shipped artifact in bold."""
    from rich import box
    from rich.table import Table

    # Without padding all columns fit into 80 characters.
    table = Table(box=box.SIMPLE_HEAD, padding=0, caption=_caption(validation), caption_justify="left")
    table.add_column("artifact", no_wrap=True)
    for heading in ("size", "agreement", "95 % interval", "latency"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    if validation.teacher is not None:
        cost = validation.teacher
        table.add_row(
            "teacher", text.size(cost.size_bytes), "", "", text.milliseconds(cost.latency_ms), "", style="dim"
        )
    for row in validation.ledger:
        table.add_row(*_cells(row), style="bold" if row.artifact == validation.shipped else "")
    return table


def _cells(row: ArtifactFidelity) -> "list[Text]":
    from rich.text import Text

    return [
        Text(text.visible(row.artifact)),
        Text(text.size(row.size_bytes)),
        Text(text.share(row.agreement)),
        Text(text.interval(row.agreement)),
        Text(text.milliseconds(row.latency_ms)),
        Text(row.verdict, style=STYLES[row.verdict]),
    ]


def _caption(validation: ValidateRecord) -> str:
    return (
        f"Agreement with the teacher on {told_of_probes(validation)}; latency of one image {timed_where(validation)}."
    )


def told_of_probes(validation: ValidateRecord) -> str:
    """How many probes there are, in words."""
    return f"{validation.probes:,} synthetic probes, views of {validation.probe_images:,} images"


def timed_where(validation: ValidateRecord) -> str:
    """Where the latencies of a ledger were measured, in words."""
    engine = any(row.artifact.endswith(".plan") for row in validation.ledger)
    return "on this CPU, of an engine on its GPU" if engine else "on this CPU"
