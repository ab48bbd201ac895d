"""A delivered folder read back: its report, and the files that people and CI read made anew from it."""

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from compress.exporters.bundle import (
    MANIFEST,
    MARKER,
    WORK,
    friendly_os_errors,
    replace_delivered,
    verify_manifest,
)
from compress.pipeline.errors import GateError, InputError, UsageError
from compress.pipeline.report import ReportData, probe_samples, render
from compress.pipeline.report.data import REPORT_FILE
from compress.pipeline.stages import exclusive

NAME_A_FOLDER = "Name the folder that `compress` wrote with -o."


def read_report(folder: Path) -> ReportData:
    """What a delivered folder tells of itself, once every file is known to be as it was delivered.

    Raises:
        GateError: a file is not as it was delivered.
        UsageError: there is no such folder, or it is none that was delivered.
        InputError: the report is of another version.
    """
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
        raise UsageError(f"There is no folder '{folder}'.", NAME_A_FOLDER)
    if not (folder / MANIFEST).is_file():
        if (folder / MARKER).is_file():
            raise UsageError(f"'{folder}' is not finished.", "The command that began it continues it.")
        raise UsageError(f"'{folder}' is no delivered folder.", NAME_A_FOLDER)
    problems = verify_manifest(folder)
    if problems:
        raise GateError(f"'{folder}' is not as it was delivered: {' '.join(problems)}", "Copy the delivery again.")
    try:
        return ReportData.model_validate_json((folder / REPORT_FILE).read_bytes())
    except (ValidationError, FileNotFoundError) as error:
        raise InputError(
            f"'{folder}/{REPORT_FILE}' was written by another version of compress.", "Read it with that version."
        ) from error


def rebuild_report(folder: Path) -> tuple[str, ...]:
    """Make the page, the Markdown, the JUnit file and the model card anew; returns their names.

    `report.json` stays as it is: it is what they are made from.

    Raises:
        GateError, UsageError, InputError: as `read_report`; or the folder lacks pictures, or cannot be written.
        MissingResourceError: the disk is full.
    """
    report = read_report(folder)
    if not os.access(folder, os.W_OK):
        raise UsageError(f"'{folder}' cannot be written.", "Copy it to where it can be.")
    with friendly_os_errors(folder), _alone(folder):
        files = render(report, probe_samples(_probe_images(folder)), _class_grids(folder, report))
        del files[REPORT_FILE]
        replace_delivered(folder, files)
    return tuple(files)


def _alone(folder: Path) -> AbstractContextManager[None]:
    """No run writes into the folder meanwhile; where there are no stage folders, none can."""
    return exclusive(folder / WORK) if os.path.isdir(folder / WORK) else nullcontext()  # noqa: PTH112 - as above


def _probe_images(folder: Path) -> NDArray[np.uint8]:
    with np.load(folder / "probes.npz", allow_pickle=False) as arrays:
        images: NDArray[np.uint8] = arrays["images"]
    return images


def _class_grids(folder: Path, report: ReportData) -> dict[str, bytes]:
    """The pictures that the report names, which are looked for among the files of the folder and nowhere else."""
    found = {path.name: path for path in folder.glob("*.png")}
    names = [grid.file_name for grid in report.distill.samples]
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(
            f"'{folder}' was delivered without {' and '.join(missing)}, which its report shows.",
            "The command that made it delivers them, too, and reuses every stage.",
        )
    return {name: found[name].read_bytes() for name in names}
