"""Runs one stage into its folder once; what is there already, and whole, is not made again.

A stage writes into `<name>.partial`, which is renamed when the stage is complete, so a folder that carries the final
name is whole. `stage.json`, written last, holds the hash of everything that the stage read, the hash of every file that
it wrote, and its record. A partial folder survives a crash only for stages that can continue from it.
"""

import fcntl
import hashlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

import compress
from compress.exporters.bundle import sha256_of, write_file
from compress.pipeline.errors import UsageError
from compress.pipeline.records import Record

RecordT = TypeVar("RecordT", bound=Record)

STAGE_FILE = "stage.json"
SOURCES = (".py", ".j2")
INPUTS_FILE = "inputs.sha256"
SECONDS_FILE = "seconds.json"
"""Where a resumable stage keeps how long it has worked so far."""


class StageResult(NamedTuple):
    """What a stage handed on, where its files are, and whether they were there already."""

    record: Any
    folder: Path
    reused: bool
    seconds: float
    """How long the stage took when it ran."""


def run_stage(
    folder: Path,
    inputs: Mapping[str, Any],
    record_type: type[RecordT],
    produce: Callable[[Path], RecordT],
    *,
    resume_files: Sequence[str] = (),
) -> StageResult:
    """Run `produce` into `folder`, unless the folder already holds what these inputs give.

    Args:
        folder: where the stage's files end up.
        inputs: everything that the stage reads, as JSON: settings, and hashes of files.
        record_type: what `produce` returns, for reading it back.
        produce: writes its files into the folder it is given and returns the record.
        resume_files: patterns of files by which `produce` continues what an interrupted run with the same inputs left;
            none where it cannot. They are removed when the stage is whole.
    """
    key = _key(folder.name, inputs)
    finished = _finished(folder, key, record_type)
    if finished is not None:
        return finished
    partial = _partial_folder(folder, key, resumable=bool(resume_files))
    started = time.monotonic() - _seconds_before(partial)
    record = produce(partial)
    seconds = round(time.monotonic() - started, 3)
    passing = [path for pattern in (INPUTS_FILE, SECONDS_FILE, *resume_files) for path in partial.glob(pattern)]
    kept = [path for path in _files(partial) if path not in passing and path != partial / STAGE_FILE]
    files = {path.relative_to(partial).as_posix(): sha256_of(path) for path in kept}
    content = {"inputs": key, "seconds": seconds, "files": files, "record": record.model_dump(mode="json")}
    write_file(partial / STAGE_FILE, json.dumps(content, indent=1).encode())
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    for path in passing:
        (folder / path.name).unlink()
    return StageResult(record, folder, reused=False, seconds=seconds)


def discards_unfinished(folder: Path, inputs: Mapping[str, Any]) -> bool:
    """Whether `run_stage` would throw away what an interrupted run with other inputs left."""
    marker = _partial(folder) / INPUTS_FILE
    return marker.exists() and marker.read_text() != _key(folder.name, inputs)


@contextmanager
def exclusive(work: Path) -> Iterator[None]:
    """Hold the work folder for this process alone; the lock ends with the process, so none is ever stale.

    Raises:
        UsageError: another run holds it.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"Another run is writing into '{work.parent}'.", "Wait for it, or give another folder with -o."
            ) from error
        yield


@cache
def code_version() -> str:
    """Hash of the package's own source: changed code never reuses a stage."""
    root = Path(compress.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(
        path for part in ("pipeline", "exporters") for path in (root / part).rglob("*") if path.suffix in SOURCES
    ):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@cache
def package_versions() -> dict[str, str]:
    """What the numbers depend on; with other versions nothing is reused."""
    packages = ("torch", "onnx", "onnxruntime", "onnxscript", "transformers")
    own = {"compress": compress.__version__, "python": platform.python_version()}
    return own | {name: version(name) for name in packages}


def _key(name: str, inputs: Mapping[str, Any]) -> str:
    read = {"stage": name, "code": code_version(), "packages": package_versions(), "inputs": inputs}
    text = json.dumps(read, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _finished(folder: Path, key: str, record_type: type[RecordT]) -> StageResult | None:
    try:
        content = json.loads((folder / STAGE_FILE).read_bytes())
        same = content["inputs"] == key and all(
            sha256_of(folder / name) == sha for name, sha in content["files"].items()
        )
        record = record_type.model_validate_json(json.dumps(content["record"])) if same else None
        seconds = float(content["seconds"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError):
        return None  # Missing, damaged or made by another version: the stage runs again.
    if record is None:
        return None
    return StageResult(record, folder, reused=True, seconds=seconds)


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def _partial_folder(folder: Path, key: str, resumable: bool) -> Path:
    partial = _partial(folder)
    marker = partial / INPUTS_FILE
    if not (resumable and marker.exists() and marker.read_text() == key):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_file(marker, key.encode())
    return partial


def _seconds_before(partial: Path) -> float:
    """Time that earlier, interrupted runs of this stage worked, as far as it told us."""
    spent = partial / SECONDS_FILE
    return float(json.loads(spent.read_bytes())) if spent.exists() else 0.0


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
