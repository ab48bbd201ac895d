"""The delivered folder."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.exporters import bundle
from compress.exporters.bundle import claim_output_folder, deliver, friendly_os_errors, verify_manifest, write_manifest
from compress.pipeline.errors import CompressError, MissingResourceError, UsageError


@pytest.fixture
def delivered(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    claim_output_folder(folder)
    files = {"student.onnx": b"weights", "deploy/build_engine.sh": b"#!/bin/sh\n"}
    deliver(folder, files)
    write_manifest(folder, names=files, provenance={"seed": 1})
    return folder


def failing(code: int) -> Callable[..., Any]:
    """Stands in for a file operation on a disk with that fault; permissions would not stop a root user."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_a_new_folder_is_created_and_can_be_claimed_again(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    claim_output_folder(folder)
    claim_output_folder(folder)
    assert [path.name for path in folder.iterdir()] == [bundle.MARKER]


def test_a_delivered_folder_without_its_marker_is_known_by_its_manifest(delivered: Path) -> None:
    (delivered / bundle.MARKER).unlink()
    claim_output_folder(delivered)
    assert (delivered / bundle.MARKER).is_file()


@pytest.mark.parametrize("foreign", ["notes.txt", "manifest.json"])
def test_a_folder_with_other_peoples_files_is_refused(tmp_path: Path, foreign: str) -> None:
    (tmp_path / foreign).write_text('{"name": "a web page"}', encoding="utf-8")
    with pytest.raises(UsageError, match="is not empty and was not made by compress") as caught:
        claim_output_folder(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert "-o" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == [foreign]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.touch()
    with pytest.raises(UsageError, match="out is a file"):
        claim_output_folder(path)


@pytest.mark.parametrize(("name", "reason"), [("file/x", "Not a directory"), ("x" * 300, "File name too long")])
def test_a_path_that_cannot_be_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=f"is no possible path: {reason}"):
        claim_output_folder(tmp_path / name)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "replace", failing(errno.EACCES))
    with pytest.raises(UsageError, match="no permission to write") as caught:
        claim_output_folder(tmp_path)
    assert "-o" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (errno.ENOSPC, MissingResourceError, "The disk is full"),
        (errno.EDQUOT, MissingResourceError, "The disk is full"),
        (errno.EIO, MissingResourceError, "The disk failed"),
        (errno.EACCES, UsageError, "no permission to write"),
        (errno.EPERM, UsageError, "no permission to write"),
        (errno.EROFS, UsageError, "read-only file system"),
        (errno.ENOTDIR, UsageError, "no possible path: Not a directory"),
        (errno.ENAMETOOLONG, UsageError, "no possible path: File name too long"),
    ],
)
def test_what_a_disk_refuses_becomes_a_sentence(code: int, kind: type[CompressError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught, friendly_os_errors(Path("out/student.onnx")):
        failing(code)()
    assert "out/student.onnx" in caught.value.message
    assert caught.value.hint


def test_other_system_errors_pass_through() -> None:
    with pytest.raises(IsADirectoryError), friendly_os_errors(Path("out")):
        failing(errno.EISDIR)()


def test_files_arrive_whole_and_scripts_are_executable(tmp_path: Path) -> None:
    source = tmp_path / "source.onnx"
    source.write_bytes(b"graph")
    deliver(tmp_path / "out", {"student.onnx": source, "deploy/run.sh": b"#!/bin/sh\n", "labels.txt": b"cat\n"})
    assert (tmp_path / "out" / "student.onnx").read_bytes() == b"graph"
    assert (tmp_path / "out" / "deploy" / "run.sh").stat().st_mode & 0o111
    assert not (tmp_path / "out" / "labels.txt").stat().st_mode & 0o111


def test_a_full_disk_leaves_the_old_file_and_no_fragment(delivered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(MissingResourceError, match=r"The disk is full: .*student\.onnx"):
        deliver(delivered, {"student.onnx": b"new", "deploy/build_engine.sh": b""})
    assert (delivered / "student.onnx").read_bytes() == b"weights"
    assert not list(delivered.rglob("*.partial"))
    assert verify_manifest(delivered) == ["manifest.json is missing or is not a manifest made by compress."]


def test_a_later_run_takes_away_what_it_no_longer_makes_and_nothing_else(delivered: Path) -> None:
    (delivered / "notes.txt").write_text("mine", encoding="utf-8")
    (delivered / ".student.onnx.partial").write_bytes(b"left by a crash")
    deliver(delivered, {"student.int8.onnx": b"small"})
    names = {path.relative_to(delivered).as_posix() for path in delivered.rglob("*") if path.is_file()}
    assert names == {bundle.MARKER, "notes.txt", "student.int8.onnx"}


ENGINE = ["student.plan", "student.plan.json", "engine.receipt.json", "student.trt10.3.0.timing.cache"]


def test_an_engine_that_was_built_since_is_no_difference_and_goes_with_its_student(delivered: Path) -> None:
    for name in ENGINE:
        (delivered / name).write_bytes(b"built on the device")
    assert verify_manifest(delivered) == []
    deliver(delivered, {"student.onnx": b"other weights", "student.plan": b"of these weights"})
    assert [name for name in ENGINE if (delivered / name).exists()] == ["student.plan"]
    assert (delivered / "student.plan").read_bytes() == b"of these weights"


def test_an_engine_that_was_delivered_is_checked_like_any_file(delivered: Path) -> None:
    deliver(delivered, {"student.plan": b"plan"})
    write_manifest(delivered, names=["student.plan"], provenance={})
    (delivered / "student.plan").write_bytes(b"another")
    assert verify_manifest(delivered) == ["student.plan was changed."]


@pytest.mark.parametrize("name", ["../victim", "/victim", "deploy/../../victim"])
def test_a_forged_manifest_cannot_delete_outside_the_folder(delivered: Path, name: str) -> None:
    victim = delivered.parent / "victim"
    victim.touch()
    forged = {"made_by": "compress", "files": {name.replace("/victim", str(victim)) if name[0] == "/" else name: {}}}
    (delivered / bundle.MANIFEST).write_text(json.dumps(forged), encoding="utf-8")
    with pytest.raises(UsageError, match="leads out of"):
        deliver(delivered, {})
    assert victim.exists()


def test_a_linked_subfolder_cannot_redirect_a_delivery(tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    folder.mkdir()
    (folder / "deploy").symlink_to(elsewhere)
    with pytest.raises(UsageError, match="leads out of"):
        deliver(folder, {"deploy/run.sh": b"#!/bin/sh\n"})
    assert list(elsewhere.iterdir()) == []


def test_the_manifest_says_what_made_what(delivered: Path) -> None:
    (delivered / "left_by_a_killed_run.onnx").touch()
    names = ["student.onnx", "deploy/build_engine.sh"]
    manifest = json.loads(write_manifest(delivered, names=names, provenance={"seed": 7}).read_text(encoding="utf-8"))
    # SHA-256 of the seven bytes `weights`, as `printf weights | sha256sum` prints it.
    expected = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    assert set(manifest["files"]) == set(names)
    assert manifest["files"]["student.onnx"] == {"sha256": expected, "size_bytes": 7}
    assert manifest["packages"]["compress"] == compress.__version__
    assert set(manifest["packages"]) == {"compress", "python", "torch", "onnx", "onnxruntime"}
    assert manifest["provenance"] == {"seed": 7}


def test_an_untouched_delivery_verifies_also_after_a_move(delivered: Path) -> None:
    (delivered / "work").mkdir()
    (delivered / "work" / "stage.json").touch()
    assert verify_manifest(delivered) == []
    moved = delivered.rename(delivered.with_name("moved"))
    assert verify_manifest(moved) == []


def flip_one_bit(folder: Path) -> None:
    content = bytearray((folder / "student.onnx").read_bytes())
    content[3] ^= 1
    (folder / "student.onnx").write_bytes(content)


def swap_for_a_link(folder: Path) -> None:
    (folder / "student.onnx").rename(folder.parent / "student.onnx")
    (folder / "student.onnx").symlink_to(folder.parent / "student.onnx")


def link_a_folder(folder: Path) -> None:
    (folder / "extra").symlink_to(folder.parent, target_is_directory=True)


def rename_by_case(folder: Path) -> None:
    (folder / "student.onnx").rename(folder / "Student.onnx")


@pytest.mark.parametrize(
    ("tamper", "problems"),
    [
        (flip_one_bit, ["student.onnx was changed."]),
        (lambda folder: (folder / "student.onnx").unlink(), ["student.onnx is missing."]),
        (lambda folder: (folder / "deploy" / "more.sh").touch(), ["deploy/more.sh was added."]),
        (rename_by_case, ["student.onnx is missing.", "Student.onnx was added."]),
        (swap_for_a_link, ["student.onnx is a link; a delivery holds files only."]),
        (link_a_folder, ["extra was added."]),
    ],
)
def test_every_kind_of_tampering_is_found(
    delivered: Path, tamper: Callable[[Path], object], problems: list[str]
) -> None:
    tamper(delivered)
    assert verify_manifest(delivered) == problems


@pytest.mark.parametrize("content", ["", "[]", '{"files": {}}', '{"made_by": "compress", "files": {"a": 1}}'])
def test_a_broken_manifest_is_a_problem_not_a_crash(delivered: Path, content: str) -> None:
    (delivered / bundle.MANIFEST).write_text(content, encoding="utf-8")
    assert verify_manifest(delivered) == ["manifest.json is missing or is not a manifest made by compress."]
