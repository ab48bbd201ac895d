"""The delivered folder: claimed, filled file by file, sealed by a manifest, checked later without the program's help.

Write order: every file goes to a temporary sibling, to the disk, then into place; the manifest comes last, so a folder
with a manifest is whole. Stage folders under `work/` are no part of the delivery.
"""

import contextlib
import errno
import fnmatch
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import compress
from compress.pipeline.errors import MissingResourceError, UsageError

MANIFEST = "manifest.json"
MARKER = ".compress"
WORK = "work"
PACKAGES = ("torch", "onnx", "onnxruntime")
ENGINE_FILES = (
    "student.plan",
    "student.plan.json",
    "engine.receipt.json",
    "engine.logits.npy",
    "student.trt*.timing.cache",
    "student.trt*.plan",
    "engine.trt*.receipt.json",
    "engine.trt*.logits.npy",
)
"""What an engine build leaves in the folder. `deploy/build_engine.sh` does so after the delivery was sealed."""

_PARTIAL = ".partial"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM)
_NO_PATH = (errno.ENOTDIR, errno.ENAMETOOLONG)


@contextlib.contextmanager
def friendly_os_errors(path: Path) -> Iterator[None]:
    """Turns what a disk can refuse while `path` is written into a sentence with a remedy.

    Raises:
        MissingResourceError: the disk is full, a quota is reached, or the disk fails.
        UsageError: the place cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise MissingResourceError(f"The disk is full: {path} could not be written.", "Free some space.") from error
        if error.errno == errno.EFBIG:
            raise MissingResourceError(
                f"{path} would be larger than files may be here.", "Raise the limit with `ulimit -f`."
            ) from error
        if error.errno == errno.EIO:
            raise MissingResourceError(f"The disk failed while {path} was written.", "Check the disk.") from error
        if error.errno in _DENIED:
            raise UsageError(f"There is no permission to write {path}.", "Choose another folder with -o.") from error
        if error.errno == errno.EROFS:
            raise UsageError(f"{path} is on a read-only file system.", "Choose another folder with -o.") from error
        if error.errno in _NO_PATH:
            raise UsageError(
                f"{path} is no possible path: {error.strerror}.", "Choose another folder with -o."
            ) from error
        raise


def claim_output_folder(folder: Path) -> None:
    """Makes the folder ours: creates it if need be and leaves the marker, which also proves that it can be written.

    Raises:
        UsageError: it is a file, holds something that is not ours, or cannot be written.
        MissingResourceError: the disk is full.
    """
    with friendly_os_errors(folder):
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"The output folder {folder} is a file.", "Choose another folder with -o.")
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not _is_ours(folder):
            raise UsageError(
                f"The output folder {folder} is not empty and was not made by compress.",
                "Choose an empty or a new folder with -o.",
            )
        write_file(folder / MARKER, b"This folder was made by compress and may be overwritten by it.\n")


def deliver(folder: Path, files: Mapping[str, Path | bytes]) -> None:
    """Puts the files into the claimed folder under their names (`/` separates folders), and takes away what an earlier
    run delivered and this one does not, with the engine that was built of it unless the ONNX files are the same; other
    files are left alone.

    Write the manifest after this.

    Raises:
        UsageError: a name leads out of the folder, or the folder cannot be written.
        MissingResourceError: the disk is full.
    """
    listed = _listed(folder)
    stale = listed.keys() - files.keys()
    if not _same_graphs(listed, files):
        stale |= _engine_files(_present(folder)) - files.keys()
    with friendly_os_errors(folder):
        for name in sorted(stale):
            _inside(folder, name).unlink(missing_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        for leftover in [path for path in _files(folder) if _is_partial(path)]:
            leftover.unlink()
    for name, content in files.items():
        write_file(_inside(folder, name), content)


def write_manifest(folder: Path, *, names: Iterable[str], provenance: Mapping[str, Any]) -> Path:
    """Seals the folder: SHA-256 and size of the files of those names, package versions and where it all comes from.

    Raises:
        UsageError: the folder cannot be written.
        MissingResourceError: the disk is full.
    """
    manifest = {
        "made_by": "compress",
        "files": _entries(folder, names),
        "packages": {
            "compress": compress.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "provenance": dict(provenance),
    }
    path = folder / MANIFEST
    write_file(path, json.dumps(manifest, indent=2).encode() + b"\n")
    return path


def replace_delivered(folder: Path, files: Mapping[str, bytes]) -> None:
    """Puts new content in place of delivered files, and seals the folder with it; what else the manifest says stays.

    The manifest is replaced last: of a folder that was left half-way, `verify_manifest` names the files that are new.

    Raises:
        UsageError: a name leads out of the folder, or the folder cannot be written.
        MissingResourceError: the disk is full.
    """
    for name, content in files.items():
        write_file(_inside(folder, name), content)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["files"] |= _entries(folder, files)
    write_file(folder / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")


def delivered_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every delivered file by its name, as the manifest has it."""
    return {name: str(entry.get("sha256")) for name, entry in _listed(folder).items()}


def verify_manifest(folder: Path, but: Collection[str] = ()) -> list[str]:
    """What differs from the manifest, one sentence each; empty when the folder is as it was sealed.

    An engine that was built since then is no difference, nor is what became of the files `but` which it is asked.
    """
    listed = {name: entry for name, entry in _listed(folder).items() if name not in but}
    if not listed:
        return [f"{MANIFEST} is missing or is not a manifest made by compress."]
    present = _present(folder) - set(but)
    if _built_since(folder):
        listed = {name: entry for name, entry in listed.items() if name not in _engine_files(set(listed))}
    problems = [f"{name} is missing." for name in sorted(listed.keys() - present)]
    problems += [f"{name} was added." for name in sorted(present - listed.keys() - _engine_files(present))]
    for name in sorted(present & listed.keys()):
        if (folder / name).is_symlink():
            problems.append(f"{name} is a link; a delivery holds files only.")
        elif sha256_of(folder / name) != listed[name].get("sha256"):
            problems.append(f"{name} was changed.")
    return problems


def write_file(path: Path, content: Path | bytes) -> None:
    """Writes all of the file or nothing: a temporary sibling, flushed to the disk, then renamed. Scripts (`#!`) become
    executable.

    Raises:
        UsageError: the place cannot be written.
        MissingResourceError: the disk is full.
    """
    partial = path.with_name(f".{path.name}{_PARTIAL}")
    with friendly_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        try:
            _write_through(partial, content)
            partial.replace(path)
            _sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _entries(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What the manifest says of files."""
    return {
        name: {"sha256": sha256_of(folder / name), "size_bytes": (folder / name).stat().st_size}
        for name in sorted(names)
    }


def _write_through(path: Path, content: Path | bytes) -> None:
    with path.open("x+b") as stream:
        if isinstance(content, Path):
            with content.open("rb") as source:
                shutil.copyfileobj(source, stream)
        else:
            stream.write(content)
        stream.seek(0)
        is_script = stream.read(2) == b"#!"
        stream.flush()
        os.fsync(stream.fileno())
    if is_script:
        path.chmod(0o755)


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_ours(folder: Path) -> bool:
    return (folder / MARKER).is_file() or bool(_listed(folder))


def _listed(folder: Path) -> dict[str, dict[str, Any]]:
    """The files that the manifest lists; nothing where there is no manifest of ours."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(manifest, dict) or manifest.get("made_by") != "compress":
        return {}
    files = manifest.get("files")
    return files if isinstance(files, dict) and all(isinstance(entry, dict) for entry in files.values()) else {}


def _files(folder: Path) -> Iterator[Path]:
    """Files and links of the folder, without stage folders; folders behind links are not entered."""
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        if here == folder and WORK in folders:
            folders.remove(WORK)
        yield from (here / name for name in names)
        yield from (here / name for name in folders if (here / name).is_symlink())


def _same_graphs(listed: Mapping[str, Mapping[str, Any]], files: Mapping[str, Path | bytes]) -> bool:
    """Whether an engine that was built of the listed files is one of these, which bring none themselves."""
    graphs = {name: content for name, content in files.items() if name.endswith(".onnx")}
    before = {name: entry.get("sha256") for name, entry in listed.items() if name.endswith(".onnx")}
    now = {
        name: sha256_of(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
        for name, content in graphs.items()
    }
    return before == now and not _engine_files(set(files))


def _is_partial(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(_PARTIAL)


def _present(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in _files(folder)} - {MANIFEST, MARKER}


def _built_since(folder: Path) -> bool:
    """Whether the engine in the folder is one of `build_engine.sh`, by its receipt."""
    try:
        receipt = json.loads((folder / "engine.receipt.json").read_bytes())
        return isinstance(receipt, dict) and receipt.get("plan_sha256") == sha256_of(folder / "student.plan")
    except (OSError, ValueError, RecursionError):
        return False


def _engine_files(names: set[str]) -> set[str]:
    return {name for pattern in ENGINE_FILES for name in fnmatch.filter(names, pattern)}


def _inside(folder: Path, name: str) -> Path:
    """Where a file of that name goes; a name may come from a manifest that somebody else wrote."""
    path = folder / PurePosixPath(name)
    if ".." in PurePosixPath(name).parts or not path.parent.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"The file name '{name}' leads out of {folder}.", "Choose another folder with -o.")
    return path
