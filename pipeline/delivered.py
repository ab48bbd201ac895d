"""A delivered folder read back: its report, and the files that people and CI read made anew from it."""

import os
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from pydantic import ValidationError

from compress.exporters.bundle import (
    MANIFEST,
    MARKER,
    WORK,
    delivered_hashes,
    friendly_os_errors,
    replace_delivered,
    verify_manifest,
)
from compress.pipeline.distillation.stage import PROBES_FILE, STUDENT_FILE
from compress.pipeline.errors import GateError, InputError, UsageError
from compress.pipeline.probes import Probes
from compress.pipeline.report import ReportData, probe_samples, render
from compress.pipeline.report.data import REPORT_FILE
from compress.pipeline.report.text import visible
from compress.pipeline.stages import exclusive

REBUILT = ("report.html", "report.md", "junit.xml", "README.md")
"""What `compress report` makes anew."""

NAME_A_FOLDER = "Name the folder that `compress` wrote with -o."


def read_report(folder: Path, but: Collection[str] = ()) -> ReportData:
    """What a delivered folder tells of itself, once every file is known to be as it was delivered, `but` some.

    Raises:
        GateError: a file is not as it was delivered.
        UsageError: there is no such folder, or it is none that was delivered.
        InputError: the report is of another version, or tells of other files.
    """
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
        raise UsageError(f"There is no folder '{folder}'.", NAME_A_FOLDER)
    if not (folder / MANIFEST).is_file():
        if (folder / REPORT_FILE).is_file() and not (folder / WORK).exists():
            raise GateError(
                f"'{folder}' is not as it was delivered: {MANIFEST} is missing.", "Copy the delivery again."
            )
        if (folder / MARKER).is_file():
            raise UsageError(f"'{folder}' is not finished.", "The command that began it continues it.")
        raise UsageError(f"'{folder}' is no delivered folder.", NAME_A_FOLDER)
    problems = verify_manifest(folder, but)
    if problems:
        raise GateError(f"'{folder}' is not as it was delivered: {' '.join(problems)}", "Copy the delivery again.")
    try:
        report = ReportData.model_validate_json((folder / REPORT_FILE).read_bytes())
    except (ValidationError, FileNotFoundError) as error:
        raise InputError(
            f"'{folder}/{REPORT_FILE}' was written by another version of compress.", "Read it with that version."
        ) from error
    delivered = delivered_hashes(folder)
    told = {graph.file_name: graph.sha256 for graph in report.export.graphs}
    # By hash: a name may lead out of the folder, and a file may be another than the one that was judged.
    strange = [name for name, sha256 in told.items() if delivered.get(name) != sha256]
    strange += [name for name in (PROBES_FILE, STUDENT_FILE) if name not in delivered]
    if strange:
        raise InputError(
            f"'{folder}/{REPORT_FILE}' tells of files that were not delivered: {', '.join(map(visible, strange))}.",
            "Take the folder as `compress` delivered it.",
        )
    return report


def read_probes(folder: Path) -> Probes:
    """The probes of a delivered folder.

    Raises:
        InputError: they are no probes.
    """
    try:
        probes = Probes.load(folder / PROBES_FILE)
        whole = _whole(probes)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, TypeError) as error:
        raise InputError(f"'{folder}/{PROBES_FILE}' holds no probes.", "Copy the delivery again.") from error
    if not whole:
        raise InputError(f"'{folder}/{PROBES_FILE}' holds no probes.", "Copy the delivery again.")
    return probes


def _whole(probes: Probes) -> bool:
    """Whether the arrays are of the kinds and lengths that `Probes` tells of; the file is somebody else's."""
    kinds = {name: (array.dtype.kind, array.ndim) for name, array in probes._asdict().items()}
    numbers = dict.fromkeys(("targets", "origin", "generator", "made"), ("i", 1))
    if kinds != {"images": ("u", 4), "teacher_logits": ("f", 2), "kind": ("U", 1)} | numbers:
        return False
    lengths = {len(array) for name, array in probes._asdict().items() if name != "made"}
    made_by = probes.generator.min(initial=0) >= 0 and probes.generator.max(initial=0) < len(probes.made)
    return (
        len(lengths) == 1
        and lengths != {0}
        and made_by
        and probes.unrecognised >= 0
        and probes.images.dtype == np.uint8
    )


def rebuild_report(folder: Path) -> tuple[str, ...]:
    """Make the page, the Markdown, the JUnit file and the model card anew; returns their names.

    `report.json` stays as it is: it is what they are made from.

    Raises:
        GateError, UsageError, InputError: as `read_report`; or the folder lacks pictures, or cannot be written.
        MissingResourceError: the disk is full.
    """
    # Those that are made anew may be as an interrupted command left them.
    report = read_report(folder, but=REBUILT)
    if not os.access(folder, os.W_OK):
        raise UsageError(f"'{folder}' cannot be written.", "Copy it to where it can be.")
    with friendly_os_errors(folder), _alone(folder):
        files = render(report, _samples(folder), _class_grids(folder, report))
        del files[REPORT_FILE]
        replace_delivered(folder, files)
    return tuple(files)


def _samples(folder: Path) -> bytes:
    probes = read_probes(folder)
    return probe_samples(probes.images, probes.kind)


def _alone(folder: Path) -> AbstractContextManager[None]:
    """No run writes into the folder meanwhile; where there are no stage folders, none can."""
    return exclusive(folder / WORK) if os.path.isdir(folder / WORK) else nullcontext()  # noqa: PTH112 - as above


def _class_grids(folder: Path, report: ReportData) -> dict[str, bytes]:
    """The pictures that the report names, which are looked for among the files of the folder and nowhere else."""
    found = {path.name: path for path in folder.glob("*.png") if path.is_file()}
    names = [grid.file_name for grid in report.distill.samples]
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(
            f"'{folder}' was delivered without {' and '.join(missing)}, which its report shows.",
            "The command that made it delivers them, too, and reuses every stage.",
        )
    return {name: found[name].read_bytes() for name in names}
