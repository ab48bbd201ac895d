"""What the commands print on stdout: tables for people, one JSON document for machines.

torch is not imported for it: small commands are to be quick.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from compress.exporters.targets import Target
from compress.pipeline.advice import remarks
from compress.pipeline.comparison import Comparison, Measured, Pair
from compress.pipeline.fidelity import verdict_sentence
from compress.pipeline.records import Finding, ValidateRecord
from compress.pipeline.report import render_table, text
from compress.pipeline.report.data import strict_json
from compress.pipeline.report.real_images import on_real_images
from compress.pipeline.report.runner import tell_runner
from compress.pipeline.report.sections import worded

if TYPE_CHECKING:
    from compress.exporters.lint import Finding as LintFinding
    from compress.pipeline.run import Delivery

MORE_PROBES = "--probes "
"""In the advice to make more of them, by the command of the run."""

INTERVAL = "95 % interval"
BETWEEN = 8
"""Blanks before, between and behind the three columns of a comparison."""

SHORTEST = 12
"""Characters of a folder that a comparison shows at least; where there is no room for so many, all columns are folded."""

LONGEST_LIST = 48
"""Characters of a list that a comparison shows as it is."""


def stdout() -> Console:
    return Console(soft_wrap=not sys.stdout.isatty())


def print_delivery(delivery: "Delivery", as_json: bool) -> None:
    from compress.pipeline.workspace import STAGES

    validation, engine = delivery.report.validation, delivery.report.export.engine
    beside = remarks(validation, delivery.report.target)
    if annotation := tell_runner(delivery.report, delivery.folder, os.environ):
        typer.echo(annotation, err=True)
    if as_json:
        about_run = {
            "folder": str(delivery.folder),
            "seconds": round(delivery.seconds, 1),
            "reused": delivery.reused,
            "engine": engine.message,
        }
        typer.echo(_verdict_json(validation, beside, about_run))
        return
    console = stdout()
    console.print(render_table(validation))
    console.print(Text(engine.message))
    console.print(Text(verdict_sentence(validation), style="bold"))
    for line in filter(None, (beside, on_real_images(validation))):
        console.print(Text(line))
    reused = f", {len(delivery.reused)} of {len(STAGES)} stages reused" if delivery.reused else ""
    console.print(Text(f"{delivery.folder}/report.html ({delivery.seconds:.0f} s{reused})"))


def print_validation(validation: ValidateRecord, target: Target, limits: str, as_json: bool) -> None:
    """`limits` are the options by which other gates were asked for than those of the run."""
    beside = remarks(validation, target)
    if limits and MORE_PROBES in beside:
        beside += f" The run has gates of its own: validate with {limits} again when the probes are there."
    if as_json:
        typer.echo(_verdict_json(validation, beside))
        return
    stdout().print(render_table(validation))
    stdout().print(Text(verdict_sentence(validation), style="bold"))
    if beside:
        stdout().print(Text(beside))


def _verdict_json(validation: ValidateRecord, beside: str, about_run: Mapping[str, Any] | None = None) -> str:
    """The verdict in words first, everything that it rests on last."""
    content = {"verdict": validation.verdict, "reason": verdict_sentence(validation), "advice": beside}
    return strict_json({**content, **(about_run or {}), "validation": validation.model_dump(mode="json")})


def print_targets(targets: list[Target]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    table.add_column("target", style="bold", no_wrap=True)
    table.add_column("files", no_wrap=True)
    table.add_column("device")
    for target in targets:
        kinds = f" ({target.int8}{', typed too' if target.typed else ''})" if target.int8 else ""
        files = ", ".join(target.precisions) + kinds
        table.add_row(target.name, files, f"{target.title}.\n{target.note}".strip())
    stdout().print(table, highlight=False)


def print_facts(facts: dict[str, str]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, value in facts.items():
        table.add_row(Text(name, style="bold"), Text(value))
    stdout().print(table)


def print_lint(findings: "list[LintFinding]") -> None:
    """Findings that say the same of several nodes are told once."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for finding in findings:
        alike.setdefault((finding.rule, finding.message, finding.cure), []).append(finding.node)
    for (rule, message, cure), nodes in alike.items():
        shown = ", ".join(nodes[:3]) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")
        print_facts({rule: f"{shown}: {message}" if shown else message, "": cure})
    typer.echo(f"{len(findings)} finding{'s' if len(findings) > 1 else ''}.")


def print_findings(findings: tuple[Finding, ...], outlook: str) -> None:
    colours = {"problem": "red", "warning": "yellow", "note": "dim"}
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for finding in findings:
        table.add_row(Text(finding.severity, style=colours[finding.severity]), Text(finding.topic), Text(str(finding)))
    for block in ("", table, "", Text(outlook, style="bold")):
        stdout().print(block)


def print_comparison(comparison: Comparison, as_json: bool) -> None:
    if as_json:
        typer.echo(strict_json(comparison.model_dump(mode="json")))
        return
    console = stdout()
    sections = [list(rows) for rows in (_sides(comparison), _artifacts(comparison), _settings(comparison))]
    most = (console.width - BETWEEN - max(len(name) for rows in sections for name, *_ in rows)) // 2
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=most >= SHORTEST, overflow="fold")
    for heading in _headings(comparison, max(most, SHORTEST)):
        table.add_column(Text(heading), overflow="fold")
    for rows in sections:
        for cells in rows:
            table.add_row(*(Text(text.visible(cell)) for cell in cells))
        table.add_section()
    for remark in comparison.remarks:
        console.print(Text(remark))
    console.print(table)


def _headings(comparison: Comparison, most: int) -> list[str]:
    """The folders; of a name of more characters than `most` the end, unless the two then are the same."""
    names = [text.visible(side.folder) for side in (comparison.one, comparison.other)]
    ends = [name if len(name) <= most else f"…{name[1 - most :]}" for name in names]
    return names if ends[0] == ends[1] else ends


def _sides(comparison: Comparison) -> Iterator[tuple[str, str, str]]:
    one, other = comparison.one, comparison.other
    yield "target", one.target, other.target
    yield "student", one.student, other.student
    yield "parameters", text.count(one.parameters), text.count(other.parameters)
    yield "verdict", one.verdict, other.verdict
    yield "judged file", one.judged, other.judged
    yield "time", text.duration(one.seconds), text.duration(other.seconds)


def _artifacts(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    for pair in comparison.artifacts:
        yield pair.artifact, "", ""
        yield from _side_by_side(_figures, pair)
        if pair.agreement:
            yield f"  {pair.agreement}", "", ""
        if any(side and side.real_agreement for side in (pair.one, pair.other)):
            yield from _side_by_side(_real_figures, pair)


def _side_by_side(figures: Callable[[Measured], dict[str, str]], pair: Pair) -> Iterator[tuple[str, str, str]]:
    """What is told of an artifact in either folder; a dash where it is not there."""
    sides = [figures(side) if side else {} for side in (pair.one, pair.other)]
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        yield f"  {name}", sides[0].get(name, text.MISSING), sides[1].get(name, text.MISSING)


def _figures(measured: Measured) -> dict[str, str]:
    return {
        "size": text.size(measured.size_bytes),
        "latency": text.milliseconds(measured.latency_ms),
        "mean KL": f"{text.significant(measured.mean_kl)} nats",
        "agreement": text.share(measured.agreement),
        INTERVAL: text.interval(measured.agreement),
    }


def _real_figures(measured: Measured) -> dict[str, str]:
    real = measured.real_agreement
    return {"on real images": text.share(real), INTERVAL: text.interval(real)} if real else {}


def _settings(comparison: Comparison) -> Iterator[tuple[str, str, str]]:
    for name, (one, other) in comparison.settings.items():
        yield name, _briefly(one), _briefly(other)


def _briefly(value: Any) -> str:
    """A setting as `--set` takes it; of a list that would fill several lines how many values it has."""
    shown = worded(value)
    if isinstance(value, list) and len(shown) > LONGEST_LIST:
        return f"{len(value):,} values, see settings.yaml"
    return shown
