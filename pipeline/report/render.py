"""All files of the report from one record."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from compress.pipeline.advice import remarks
from compress.pipeline.fidelity import find_artifact, verdict_sentence
from compress.pipeline.gates import AGREEMENT
from compress.pipeline.records import ArtifactFidelity
from compress.pipeline.report import charts, curves, sections, text
from compress.pipeline.report.data import REPORT_FILE, ReportData, to_json
from compress.pipeline.report.junit import to_junit
from compress.pipeline.report.real_images import beside_probes, on_real_images
from compress.pipeline.report.terminal import timed_where, told_of_probes

MOST_CLASSES = 20
"""Classes that the chart shows, lowest agreement first."""

_TEMPLATES = Path(__file__).parent / "templates"
_FILTERS = (
    *(text.share, text.percentage, text.interval, text.significant, text.size),
    *(text.milliseconds, text.decibels, text.count, text.change),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassGrid:
    """A picture with a row of synthetic images for each class."""

    moment: str
    labels: tuple[str, ...]
    picture: str
    """PNG in base64."""


def render(
    data: ReportData, samples: bytes | None = None, grids: Mapping[str, bytes] = MappingProxyType({})
) -> dict[str, bytes]:
    """Name and content of `report.html`, `report.md`, `report.json`, `junit.xml` and `README.md`, the model card.

    `samples` is a PNG of some probes, see `probe_samples`; `grids` holds those that `data.distill.samples` names. Class names,
    file names and settings are foreign text: they are
    escaped for each format, and characters that would steer a terminal or reorder a line are written out.
    """
    context = _context(data)
    pictures = {"samples": _embedded(samples), "grids": _class_grids(data, grids)}
    return {
        "report.html": _unbroken(_fill(_html_environment(), "report.html.j2", context | pictures)),
        "report.md": _fill(_markdown_environment(), "report.md.j2", context),
        REPORT_FILE: to_json(data),
        "junit.xml": to_junit(data.validation),
        "README.md": _fill(_markdown_environment(), "model_card.md.j2", context),
    }


def _context(data: ReportData) -> dict[str, Any]:
    shipped = find_artifact(data.validation.ledger, data.validation.shipped)
    graphs = [graph.file_name for graph in data.export.graphs]
    classes = charts.lowest_classes(data.labels, shipped.agreement_by_class, MOST_CLASSES)
    unseen = charts.unseen_classes(data.labels, shipped.agreement_by_class)
    return {
        "data": data,
        "sentence": verdict_sentence(data.validation).partition(": ")[2],
        "advice": remarks(data.validation, data.target),
        "shipped": shipped,
        "calibration": sections.CALIBRATION,
        "timed_where": timed_where(data.validation),
        "probes_told": told_of_probes(data.validation),
        "steps": charts.step_by_step(data.validation),
        "delivered": {row.artifact for row in data.validation.ledger},
        "real": on_real_images(data.validation),
        "real_rows": beside_probes(data.validation),
        "headline": sections.headline(data),
        "classes": classes,
        "classes_caption": _classes_caption(len(classes), len(data.labels) - len(unseen), len(data.labels)),
        "heat_map": charts.heat_map(data.labels, shipped.confusion) if shipped.confusion else [],
        "kinds": sections.KINDS,
        "by_kind": {kind: shipped.by_kind[kind] for kind in sorted(shipped.by_kind, key=sections.place_of_kind)},
        "by_generator": "; ".join(sections.by_generator(shipped)),
        "confusions": charts.confused_pairs(data.labels, shipped.confusions),
        "unseen": sections.named(unseen) if unseen else "",
        "probes": sections.probes(data.validation.adequacy),
        "curve": curves.agreement_curve(data.distill.history, _agreement_limit(shipped)),
        "losses": curves.loss_curves(data.distill.history),
        "distillation": sections.distillation(data.distill, data.teacher),
        "background": sections.background(data),
        # An engine is built on the device; what runs everywhere is the graph that it is built from.
        "model": shipped.artifact if shipped.artifact in graphs else graphs[-1],
    }


def _class_grids(data: ReportData, pictures: Mapping[str, bytes]) -> list[ClassGrid]:
    return [
        ClassGrid(
            moment=grid.moment,
            labels=tuple(data.labels[number] for number in grid.classes),
            picture=_embedded(pictures[grid.file_name]),
        )
        for grid in data.distill.samples
        if grid.file_name in pictures
    ]


def _embedded(png: bytes | None) -> str:
    return base64.b64encode(png or b"").decode()


def _classes_caption(shown: int, seen: int, classes: int) -> str:
    if shown < seen:
        return f"The {shown} lowest of {seen:,} classes."
    return f"All {seen:,} classes{'' if seen == classes else ' that the teacher names'}, lowest first."


def _agreement_limit(row: ArtifactFidelity) -> float | None:
    return next((gate.limit for gate in row.gates if gate.name == AGREEMENT), None)


def _fill(environment: Environment, template: str, context: dict[str, Any]) -> bytes:
    return environment.get_template(template).render(context).encode()


def _unbroken(html: bytes) -> bytes:
    """The same page where no line ends between a number and its percent sign."""
    return html.replace(b" %", b"&nbsp;%")


def _html_environment() -> Environment:
    return _environment(text.visible, autoescape=True)


def _markdown_environment() -> Environment:
    # Markdown has no autoescape of its own; `finalize` sees every value that a template writes, so none is forgotten.
    return _environment(text.markdown, autoescape=False)


def _environment(shown: Callable[[str], str], *, autoescape: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=autoescape,
        finalize=lambda value: shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters |= {function.__name__: function for function in _FILTERS} | {
        "position": _position,
        "objections": _objections,
    }
    return environment


def _objections(row: ArtifactFidelity) -> str:
    """What speaks against an artifact, empty when nothing does."""
    return "; ".join(gate.explanation for gate in row.gates if gate.verdict != "PASS")


def _position(share: float) -> str:
    """A share as a coordinate in percent."""
    return f"{share * 100:.2f}"
