"""What is made anew from a delivered folder, without the stages that made it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from compress.exporters.bundle import sha256_of, verify_manifest, write_manifest
from compress.pipeline.report import render
from compress.pipeline.stages import exclusive
from tests.command import compress, files_in
from tests.test_run import OPTIONS

MADE_ANEW = ("report.html", "report.md", "junit.xml", "README.md")


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory, teacher_file: Path, labels_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("delivered") / "out"
    words = ("--labels", labels_file, *OPTIONS, "--target", "onnx", "--min-agreement", "0.05", "-o", folder)
    assert compress(teacher_file, *words).exit_code == 0
    return folder


@pytest.fixture
def folder(delivered: Path, tmp_path: Path) -> Path:
    """What a user has after a copy: the delivery without its stages."""
    return shutil.copytree(delivered, tmp_path / "out", ignore=shutil.ignore_patterns("work"))


def hashes(folder: Path) -> dict[str, str]:
    return {name: sha256_of(folder / name) for name in files_in(folder)}


def test_the_report_of_the_same_version_comes_out_the_same(folder: Path) -> None:
    before = hashes(folder)
    result = compress("report", folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        f"{folder}: report.html, report.md, junit.xml and README.md were made anew from report.json.\n"
    )
    assert hashes(folder) == before


def test_what_an_earlier_version_wrote_is_replaced_and_the_folder_is_sealed_again(folder: Path) -> None:
    before = json.loads((folder / "manifest.json").read_text())
    expected = hashes(folder)
    for name in MADE_ANEW:
        (folder / name).write_text("as an earlier version wrote it")
    write_manifest(folder, names=before["files"], provenance=before["provenance"])
    assert compress("report", folder).exit_code == 0
    assert verify_manifest(folder) == []
    assert json.loads((folder / "manifest.json").read_text()) == before
    assert {name: sha256_of(folder / name) for name in MADE_ANEW} == {name: expected[name] for name in MADE_ANEW}
    assert [*ElementTree.parse(folder / "junit.xml").getroot().iter("testcase")]
    assert (folder / "report.html").read_text().count("data:image/png") == 3  # two of classes and one of probes


@pytest.mark.parametrize("name", ["report.json", "probes.npz", "student.onnx"])
def test_a_folder_that_was_changed_is_refused_and_left_alone(folder: Path, name: str) -> None:
    with (folder / name).open("ab") as stream:
        stream.write(b" ")
    before = hashes(folder)
    result = compress("report", folder)
    assert (result.exit_code, result.stdout) == (4, "")
    assert f"is not as it was delivered: {name} was changed." in result.stderr
    assert hashes(folder) == before


def test_what_is_no_delivered_folder_is_refused_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    missing = compress("report", folder / "none")
    assert missing.exit_code == 2 and f"There is no folder '{folder / 'none'}'." in missing.stderr
    foreign = compress("report", tmp_path)
    assert foreign.exit_code == 2 and "is no delivered folder" in foreign.stderr
    (folder / "manifest.json").unlink()
    shutil.rmtree(folder / "work", ignore_errors=True)
    sealed_no_more = compress("report", folder)
    assert sealed_no_more.exit_code == 4 and "manifest.json is missing" in sealed_no_more.stderr
    (folder / "work").mkdir()
    unfinished = compress("report", folder)
    assert unfinished.exit_code == 2 and "is not finished" in unfinished.stderr


def reseal_without(folder: Path, *names: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in names:
        (folder / name).unlink()
    write_manifest(folder, names=manifest["files"].keys() - set(names), provenance=manifest["provenance"])


def test_a_folder_without_the_pictures_of_its_report_is_not_given_a_poorer_one(folder: Path) -> None:
    reseal_without(folder, "samples-warmup.png", "samples-final.png")
    before = hashes(folder)
    result = compress("report", folder)
    assert result.exit_code == 3
    assert "was delivered without samples-warmup.png and samples-final.png, which its report shows." in result.stderr
    assert hashes(folder) == before


def test_a_picture_outside_of_the_folder_is_not_shown(folder: Path) -> None:
    (folder.parent / "secret.png").write_bytes(b"PNG")
    report = json.loads((folder / "report.json").read_text())
    report["distill"]["samples"][0]["file_name"] = "../secret.png"
    (folder / "report.json").write_text(json.dumps(report))
    reseal_without(folder)
    result = compress("report", folder)
    assert result.exit_code == 3
    assert "was delivered without ../secret.png" in result.stderr


def test_a_report_of_another_version_is_refused(folder: Path) -> None:
    (folder / "report.json").write_text('{"schema_version": 99}')
    reseal_without(folder)
    result = compress("report", folder)
    assert result.exit_code == 3
    assert "report.json' was written by another version of compress.\nRead it with that version." in result.stderr


def test_a_folder_that_cannot_be_written_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # permissions would not stop a root user
    result = compress("report", folder)
    assert result.exit_code == 2
    assert f"'{folder}' cannot be written.\nCopy it to where it can be." in result.stderr


def test_while_a_run_writes_into_the_folder_its_report_is_left_alone(folder: Path) -> None:
    with exclusive(folder / "work"):
        result = compress("report", folder)
    assert result.exit_code == 2
    assert f"Another run is writing into '{folder}'." in result.stderr


def test_an_interrupted_rewrite_leaves_a_folder_that_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "compress.pipeline.delivered.render", lambda *given: render(*given) | {"README.md": b"# another version's card"}
    )
    monkeypatch.setattr("compress.exporters.bundle._entries", interrupted)
    assert compress("report", folder).exit_code == 130
    assert verify_manifest(folder) == ["README.md was changed."]
    assert "partial" not in " ".join(files_in(folder))


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_an_interrupted_command_left_is_made_anew(folder: Path) -> None:
    before = hashes(folder)
    (folder / "report.html").write_text("half a page")
    (folder / "junit.xml").unlink()
    assert compress("verify", folder).exit_code == 4
    assert compress("report", folder).exit_code == 0
    assert hashes(folder) == before


# Whoever can write a folder can seal it again: its report is foreign, too


def resealed(folder: Path, change: Callable[[Any], object]) -> None:
    report = json.loads((folder / "report.json").read_text())
    change(report)
    (folder / "report.json").write_text(json.dumps(report))
    seal(folder)


def seal(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    names = [name for name in manifest["files"] if (folder / name).exists()]
    write_manifest(folder, names=names, provenance=manifest["provenance"])


@pytest.mark.parametrize(
    "change",
    [
        lambda report: report["labels"].pop(),
        lambda report: report["validation"].update(shipped="x"),
        lambda report: report["export"].update(graphs=[]),
        lambda report: report["distill"]["samples"][0].update(classes=[99]),
        lambda report: report["validation"]["ledger"][0].update(
            confusions=[{"teacher": 99, "artifact": 0, "count": 2, "total": 3}]
        ),
        lambda report: report["validation"]["ledger"][0].update(confusion=[[1, 2], [3, 4]]),
        lambda report: report["validation"]["ledger"][0]["confusion"].__setitem__(0, [-1] * len(report["labels"])),
        lambda report: report["distill"].update(parameters=0),
        lambda report: report["export"]["graphs"][0].update(file_name="../elsewhere.onnx"),
        lambda report: report["export"]["graphs"][0].update(sha256="0" * 64),
    ],
)
@pytest.mark.parametrize("command", ["report", "validate"])
def test_a_report_that_contradicts_itself_or_its_folder_is_refused(
    folder: Path, command: str, change: Callable[[Any], object]
) -> None:
    shutil.copyfile(folder / "student.onnx", folder.parent / "elsewhere.onnx")
    resealed(folder, change)
    result = compress(command, folder)
    assert (result.exit_code, result.stdout) == (3, "")
    assert f"compress: '{folder}/report.json' " in result.stderr


def test_a_report_that_tells_of_another_student_is_refused_by_validate(folder: Path) -> None:
    resealed(folder, lambda report: report["distill"]["spec"].update(family="unheard of"))
    result = compress("validate", folder)
    assert result.exit_code == 3
    assert "is not the student that its report tells of" in result.stderr


@pytest.mark.parametrize("content", [b"no archive", None])
@pytest.mark.parametrize("command", ["report", "validate"])
def test_probes_that_are_damaged_or_missing_are_told_of(folder: Path, command: str, content: bytes | None) -> None:
    (folder / "probes.npz").unlink()
    if content is not None:
        (folder / "probes.npz").write_bytes(content)
    seal(folder)
    result = compress(command, folder)
    assert result.exit_code == 3
    assert "probes.npz" in result.stderr


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("made", lambda array: array[:0]),
        ("made", lambda array: array * 0),
        ("made", lambda array: array / 1.0),
        ("origin", lambda array: array[:, None]),
        ("targets", lambda array: array.astype(str)),
        ("kind", lambda array: np.zeros(len(array), int)),
        ("generator", lambda array: array - 1),
        ("generator", lambda array: array + 10**9),
        ("images", lambda array: array / 255),
        ("teacher_logits", lambda array: array[:, 0]),
        ("teacher_logits", lambda array: array[:, 1:]),
        ("teacher_logits", lambda array: array[1:]),
    ],
)
def test_probes_that_do_not_fit_together_are_refused(
    folder: Path, name: str, harm: Callable[[np.ndarray], np.ndarray]
) -> None:
    with np.load(folder / "probes.npz") as file:
        arrays = dict(file)
    np.savez(folder / "probes.npz", **arrays | {name: harm(arrays[name])})
    seal(folder)
    result = compress("validate", folder)
    assert result.exit_code == 3
    assert result.stderr.startswith(f"compress: '{folder}/probes.npz' ")
    assert "Traceback" not in result.stderr


def test_settings_without_gates_are_judged_by_the_usual_ones(folder: Path) -> None:
    resealed(folder, lambda report: report["settings"].pop("gates"))
    result = compress("validate", folder)
    assert result.exit_code == 4
    assert "the required 90 %" in result.stdout.replace("\n", " ")
