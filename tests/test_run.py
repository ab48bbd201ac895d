"""The whole command, end to end, on a tiny teacher."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import yaml
from PIL import Image
from typer.testing import Result

from compress.exporters.bundle import sha256_of, verify_manifest
from compress.pipeline.settings import Settings, resolve_settings
from compress.pipeline.stages import exclusive
from compress.pipeline.workspace import STAGES
from tests.command import LABELS, compress, files_in

ROUNDS = 12
OPTIONS = (
    *("--recipe", "smoke", "--device", "cpu", "--set", "threads=1", "--set", "precision=fp32"),
    *("--set", f"distill.rounds={ROUNDS}"),
)
"""Rounds enough to be interrupted between; threads and precision are those of any machine."""

PASSING = ("--min-agreement", "0.05")
DELIVERED = {
    *("README.md", "student.onnx", "student.safetensors", "student.json", "labels.txt", "probes.npz"),
    *("samples-warmup.png", "samples-final.png"),
    *("report.html", "report.md", "report.json", "junit.xml", "manifest.json", "settings.yaml"),
}
ON_DEVICE = {"deploy/build_engine.sh", "deploy/replay.py", "deploy/replay.json"}


@pytest.fixture(scope="module")
def inputs(teacher_file: Path, labels_file: Path) -> tuple[str, ...]:
    return (str(teacher_file), "--labels", str(labels_file), *OPTIONS)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, inputs: tuple[str, ...]) -> tuple[Path, Result]:
    """One whole run for the default target, and what it said."""
    folder = tmp_path_factory.mktemp("first") / "out"
    return folder, compress(*inputs, *PASSING, "-o", folder)


@pytest.fixture
def again(first: tuple[Path, Result], tmp_path: Path) -> Path:
    """A copy of the first run's folder, to run into."""
    return shutil.copytree(first[0], tmp_path / "out")


@pytest.fixture
def embedded(first: tuple[Path, Result], tmp_path: Path) -> Path:
    """A folder in which nothing but intake and embeddings is done yet: loading a text encoder takes seconds."""
    for stage in ("1-intake", "2-embed"):
        shutil.copytree(first[0] / "work" / stage, tmp_path / "fresh" / "work" / stage)
    (tmp_path / "fresh" / ".compress").touch()
    return tmp_path / "fresh"


def delivered(folder: Path) -> set[str]:
    return {name for name in files_in(folder) if not name.startswith("work/")} - {".compress"}


def stage_hashes(folder: Path, stage: str) -> dict[str, str]:
    files: dict[str, str] = json.loads((folder / "work" / stage / "stage.json").read_text())["files"]
    return files


# What is delivered


def test_the_first_run_passes_and_says_what_came_out(first: tuple[Path, Result]) -> None:
    folder, result = first
    assert (result.exit_code, result.exception) == (0, None)
    assert "student.int8.onnx" in result.stdout
    assert "PASS: student.int8.onnx gives the teacher's answer on" in result.stdout
    assert "The TensorRT engine is built on the device" in result.stdout
    assert f"{folder}/report.html" in result.stdout
    assert [line for line in result.stderr.splitlines() if line.startswith("[")] == [
        f"[{number}/7] {stage}" for number, stage in enumerate(STAGES, start=1)
    ]
    assert f"{ROUNDS + 1}/{ROUNDS + 1}  loss " in result.stderr


def test_the_delivered_folder_is_complete(first: tuple[Path, Result]) -> None:
    folder, _ = first
    assert delivered(folder) == DELIVERED | ON_DEVICE | {"student.int8.onnx"}
    assert (folder / "labels.txt").read_text().split() == list(LABELS)
    assert os.access(folder / "deploy" / "build_engine.sh", os.X_OK)
    report = json.loads((folder / "report.json").read_text())
    assert report["validation"]["verdict"] == "PASS"
    assert [row["artifact"] for row in report["validation"]["ledger"]] == [
        *("student.safetensors", "student.onnx", "student.int8.onnx")
    ]
    suite = ElementTree.parse(folder / "junit.xml").getroot()
    assert list(suite.iter("testcase"))
    assert not [*suite.iter("failure"), *suite.iter("error")]
    assert "partial" not in " ".join(files_in(folder))


def test_the_manifest_tells_where_everything_comes_from(first: tuple[Path, Result], teacher_file: Path) -> None:
    folder, _ = first
    assert verify_manifest(folder) == []
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == delivered(folder) - {"manifest.json"}
    provenance = manifest["provenance"]
    assert provenance["teacher_sha256"] == sha256_of(teacher_file)
    assert (provenance["seed"], provenance["labels"], provenance["rejected"]) == (0, list(LABELS), False)
    assert list(provenance["stage_seconds"]) == list(STAGES[:-1])


def test_a_file_that_was_tampered_with_is_found_by_verify(again: Path) -> None:
    whole = compress("verify", again)
    assert (whole.exit_code, whole.stdout) == (0, f"{again}: every file is as it was delivered.\n")
    with (again / "student.int8.onnx").open("ab") as file:
        file.write(b"\0")
    (again / "labels.txt").unlink()
    broken = compress("verify", again)
    assert broken.exit_code == 4
    assert broken.stdout.splitlines() == ["labels.txt is missing.", "student.int8.onnx was changed."]


def test_the_work_folder_may_be_deleted(again: Path) -> None:
    shutil.rmtree(again / "work")
    assert compress("verify", again).exit_code == 0


def test_what_was_exported_passes_its_own_lint(first: tuple[Path, Result]) -> None:
    result = compress("lint", first[0] / "student.int8.onnx", "--target", "jetson")
    assert (result.exit_code, result.stdout) == (
        0,
        f"{first[0]}/student.int8.onnx: nothing that jetson would refuse.\n",
    )


# Doing it again


def test_a_second_run_reuses_every_stage_and_delivers_the_same(again: Path, inputs: tuple[str, ...]) -> None:
    before = {name: sha256_of(again / name) for name in delivered(again) - {"manifest.json"}}
    result = compress(*inputs, *PASSING, "-o", again, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["reused"] == list(STAGES[:-1])
    assert result.stderr.count("(reused)") == 6
    assert {name: sha256_of(again / name) for name in before} == before
    assert verify_manifest(again) == []


def test_json_is_one_document_on_stdout_and_progress_is_plain_text_on_stderr(
    again: Path, inputs: tuple[str, ...]
) -> None:
    result = compress(*inputs, *PASSING, "-o", again, "--json")
    document = json.loads(result.stdout)
    assert set(document) == {"verdict", "reason", "advice", "folder", "seconds", "reused", "engine", "validation"}
    assert (document["verdict"], document["folder"]) == ("PASS", str(again))
    assert document["reason"].startswith("PASS: student.int8.onnx")
    assert "[7/7] package" in result.stderr
    assert all(character.isprintable() or character == "\n" for character in result.stderr)


def test_quiet_leaves_stderr_empty(again: Path, inputs: tuple[str, ...]) -> None:
    result = compress(*inputs, *PASSING, "-o", again, "--quiet")
    assert result.stderr == ""
    assert "6 of 7 stages reused" in result.stdout


def test_settings_that_were_delivered_are_read_back_and_redo_nothing(
    again: Path, teacher_file: Path, labels_file: Path
) -> None:
    content = yaml.safe_load((again / "settings.yaml").read_text())
    settings = resolve_settings({}, environment={}, config=again / "settings.yaml")
    assert settings == Settings.model_validate(content)
    assert (settings.distill.rounds, settings.student.name, settings.teacher.input_size) == (ROUNDS, "inherit-1-1", 8)
    result = compress(teacher_file, "--labels", labels_file, "-c", again / "settings.yaml", "-o", again, "--json")
    # Intake itself runs again, since its input size comes from elsewhere now; what it finds is the same.
    assert json.loads(result.stdout)["reused"] == list(STAGES[1:-1])


def test_a_stage_whose_file_has_rotted_is_made_again_and_comes_out_the_same(
    again: Path, inputs: tuple[str, ...]
) -> None:
    before = stage_hashes(again, "4-quantize")
    with (again / "work" / "4-quantize" / "student.int8.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    result = compress(*inputs, *PASSING, "-o", again, "--json")
    assert "quantize" not in json.loads(result.stdout)["reused"]
    assert stage_hashes(again, "4-quantize") == before
    assert sha256_of(again / "student.int8.onnx") == sha256_of(again / "work" / "5-export" / "student.int8.onnx")


# Reproducibility


def test_the_seed_decides_the_student(
    first: tuple[Path, Result], embedded: Path, tmp_path: Path, inputs: tuple[str, ...]
) -> None:
    other = shutil.copytree(embedded, tmp_path / "other")
    assert compress(*inputs, *PASSING, "--target", "onnx", "-o", embedded).exit_code == 0
    assert compress(*inputs, "--allow-inconclusive", "--target", "onnx", "--seed", "1", "-o", other).exit_code in (0, 4)
    shas = [sha256_of(folder / "student.safetensors") for folder in (first[0], embedded, other)]
    assert shas[0] == shas[1] != shas[2]


STARTER = (
    # A process that is started in the background may ignore Ctrl-C; this one listens.
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);from compress.cli import main; main()"
)


def interrupt(words: list[str], folder: Path, number: signal.Signals) -> tuple[int, str]:
    """Start the command, send it a signal once distillation has made a checkpoint; its exit code and stderr."""
    command = [sys.executable, "-c", STARTER, *words, "-o", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (folder / "work" / "3-distill.partial" / "seconds.json").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert stdout == ""
    return process.returncode, stderr


def test_an_interrupted_run_continues_to_the_same_bits(
    first: tuple[Path, Result], embedded: Path, inputs: tuple[str, ...]
) -> None:
    words = [*inputs, *PASSING]
    code, stderr = interrupt(words, embedded, signal.SIGINT)
    assert code == 130
    assert stderr.splitlines()[-3:] == [
        "[3/7] distill",
        "compress: Stopped.",
        "The same command continues where it was.",
    ]
    work = embedded / "work"
    assert not (work / "3-distill").exists()
    assert delivered(embedded) == set()
    done = json.loads((work / "3-distill.partial" / "seconds.json").read_text())
    result = compress(*words, "-o", embedded, "--json")
    assert result.exit_code == 0
    for name in ("student.safetensors", "student.onnx", "student.int8.onnx", "probes.npz"):
        assert sha256_of(embedded / name) == sha256_of(first[0] / name)
    assert json.loads((work / "3-distill" / "stage.json").read_text())["seconds"] > done
    assert not (work / "3-distill.partial").exists()


def test_a_polite_request_to_end_is_like_ctrl_c(embedded: Path, inputs: tuple[str, ...]) -> None:
    code, stderr = interrupt([*inputs, *PASSING], embedded, signal.SIGTERM)
    assert code == 130
    assert stderr.endswith("compress: Stopped.\nThe same command continues where it was.\n")
    assert (embedded / "work" / "3-distill.partial" / "seconds.json").exists()


# Targets


@pytest.mark.parametrize(
    ("target", "files", "scheme", "opset"),
    [
        ("cpu-x86", {"student.int8.onnx"}, "u8s8", 17),
        ("jetson-nano-jp4", ON_DEVICE, None, 13),
        ("onnx", set(), None, 17),
    ],
)
def test_other_targets_reuse_the_student_and_get_what_they_take(
    again: Path, inputs: tuple[str, ...], target: str, files: set[str], scheme: str | None, opset: int
) -> None:
    result = compress(*inputs, *PASSING, "--target", target, "-o", again, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["reused"][:3] == ["intake", "embed", "distill"]
    assert DELIVERED | files <= delivered(again) <= DELIVERED | files | ON_DEVICE
    report = json.loads((again / "report.json").read_text())
    assert (report["quantize"] or {}).get("scheme") == scheme
    assert {entry.version for entry in onnx.load(again / "student.onnx").opset_import if not entry.domain} == {opset}
    assert verify_manifest(again) == []
    assert compress("lint", again / report["validation"]["shipped"], "--target", target).exit_code == 0


@pytest.mark.parametrize("target", ["jetson-orin-jp7", "cpu-x86"])
def test_files_for_cameras_reuse_the_student_and_are_as_faithful(
    again: Path, inputs: tuple[str, ...], target: str
) -> None:
    words = (*inputs, *PASSING, "--target", target, "-o", str(again), "--json")
    assert compress(*words).exit_code == 0
    plain = json.loads((again / "report.json").read_text())["validation"]["ledger"]
    result = compress(*words, "--set", "input_form=uint8-nhwc")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["reused"] == ["intake", "embed", "distill", "quantize"]
    report = json.loads((again / "report.json").read_text())
    for row, before in zip(report["validation"]["ledger"], plain, strict=True):
        assert (row["artifact"], row["agreement"]) == (before["artifact"], before["agreement"])
    for graph in report["export"]["graphs"]:
        assert graph["input_form"] == "uint8-nhwc"
        model = onnx.load(again / graph["file_name"])
        assert {entry.key: entry.value for entry in model.metadata_props}["input"] == "uint8 [N, 8, 8, 1] in [0, 255]"
        assert compress("lint", again / graph["file_name"], "--target", target).exit_code == 0
    replayed = subprocess.run(
        [sys.executable, again / "deploy" / "replay.py", "--onnx"], capture_output=True, text=True, check=False
    )
    asked = next(row for row in plain if row["artifact"] == replayed.stdout.partition(":")[0])
    assert f"agreement with the teacher: {asked['agreement']['value']:.4f}" in replayed.stdout
    assert verify_manifest(again) == []


def test_more_probes_are_judged_on_later_and_nothing_is_learned_again(
    again: Path, inputs: tuple[str, ...], first: tuple[Path, Result]
) -> None:
    least = len(first_probes(first[0])) + 20
    words = (*inputs, *PASSING, "-o", str(again), "--json", "--probes", str(least))
    result = compress(*words)
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["reused"] == list(STAGES[:-2])
    assert answer["validation"]["probes"] >= least
    assert sum(answer["validation"]["probe_kinds"].values()) == answer["validation"]["probes"]
    with np.load(again / "probes.npz") as more, np.load(first[0] / "probes.npz") as before:
        assert len(more["images"]) == answer["validation"]["probes"] > len(before["images"])
        for name in before.files:
            assert np.array_equal(more[name][: len(before[name])], before[name]), name
    assert verify_manifest(again) == []
    assert compress("validate", again).exit_code == 0
    assert json.loads(compress(*words).stdout)["reused"] == list(STAGES[:-1])
    assert json.loads(compress(*words[:-2]).stdout)["validation"]["probes"] == len(first_probes(first[0]))


def first_probes(folder: Path) -> np.ndarray:
    with np.load(folder / "probes.npz") as probes:
        return np.asarray(probes["kind"])


# Real images


@pytest.fixture
def real_images(tmp_path: Path) -> Path:
    """A folder of class folders, colourful and larger than the teacher takes them."""
    for number in range(12):
        path = tmp_path / "private place" / "factory" / LABELS[number % 3] / f"scene-{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (11, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "private place" / "factory"


def test_real_images_are_measured_beside_the_probes_and_change_nothing_else(
    again: Path, inputs: tuple[str, ...], first: tuple[Path, Result], real_images: Path
) -> None:
    result = compress(*inputs, *PASSING, "-o", again, "--holdout", real_images)
    assert (result.exit_code, result.exception) == (0, None)
    before, after = rewritten(first[0], "report.json")["validation"], rewritten(again, "report.json")["validation"]
    holdout = after.pop("holdout")
    assert before.pop("holdout") is None
    assert [(row["artifact"], row["agreement"]) for row in after["ledger"]] == [
        (row["artifact"], row["agreement"]) for row in before["ledger"]
    ]
    assert (after["verdict"], after["shipped"]) == (before["verdict"], before["shipped"])
    assert [row["artifact"] for row in holdout["rows"]] == [row["artifact"] for row in after["ledger"]]
    assert (holdout["name"], holdout["images"], holdout["teacher_accuracy"]["total"]) == ("factory", 12, 12)
    assert holdout["notes"] == [
        "12 of 12 real images were scaled to 8 x 8 pixels.",
        "12 of 12 real images were in colour and were made grey.",
    ]
    assert all(note in result.stderr for note in holdout["notes"])
    sentence = "On 12 real images that you gave, student.int8.onnx gives the teacher's answer on"
    assert sentence in result.stdout
    assert "The verdict does not rest on them." in result.stdout
    assert sentence in (again / "report.md").read_text().replace("\\", "")
    for name in ("student.safetensors", "student.onnx", "student.int8.onnx", "probes.npz", "settings.yaml"):
        assert sha256_of(again / name) == sha256_of(first[0] / name)


def test_other_real_images_are_measured_anew_and_everything_before_is_reused(
    again: Path, inputs: tuple[str, ...], real_images: Path
) -> None:
    words = (*inputs, *PASSING, "-o", str(again), "--json", "--holdout", str(real_images))
    up_to_export, whole = list(STAGES[:-2]), list(STAGES[:-1])
    assert json.loads(compress(*words).stdout)["reused"] == up_to_export
    assert json.loads(compress(*words).stdout)["reused"] == whole
    next(real_images.rglob("*.png")).unlink()
    assert json.loads(compress(*words).stdout)["reused"] == up_to_export
    without = compress(*words[:-2])
    assert json.loads(without.stdout)["reused"] == up_to_export
    assert json.loads(without.stdout)["validation"]["holdout"] is None


def test_of_real_images_only_figures_are_kept(again: Path, inputs: tuple[str, ...], real_images: Path) -> None:
    before = {name: sha256_of(again / name) for name in files_in(again)}
    assert compress(*inputs, *PASSING, "-o", again, "--holdout", real_images).exit_code == 0
    assert files_in(again) == set(before)
    changed = {name for name in before if sha256_of(again / name) != before[name]}
    reports = {"report.html", "report.md", "report.json", "README.md", "manifest.json"}
    assert reports <= changed <= reports | {"junit.xml", "work/6-validate/stage.json"}
    pictures = [path.read_bytes() for path in real_images.rglob("*.png")]
    for name in changed:
        content = (again / name).read_bytes()
        assert b"private place" not in content, name
        assert b"scene-" not in content, name
        assert not any(picture in content for picture in pictures), name


def test_a_bad_real_image_ends_a_run_and_a_dry_run_before_anything_is_written(
    tmp_path: Path, inputs: tuple[str, ...], real_images: Path
) -> None:
    (real_images / "star").mkdir()
    (real_images / "star" / "broken.jpg").write_bytes(b"no picture")
    for more in ((), ("--dry-run",)):
        result = compress(*inputs, "-o", tmp_path / "out", "--holdout", real_images, *more)
        assert (result.exit_code, result.stdout) == (3, "")
        assert "compress: The picture 'star/broken.jpg' cannot be read.\n" in result.stderr
    assert not (tmp_path / "out").exists()


# Verdicts


def rewritten(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def test_an_undecided_verdict_is_not_a_pass_unless_that_is_asked_for(
    again: Path, inputs: tuple[str, ...], first: tuple[Path, Result]
) -> None:
    ledger = rewritten(first[0], "report.json")["validation"]["ledger"]
    limit = str(ledger[-1]["agreement"]["value"])  # in the middle of its own interval
    result = compress(*inputs, "--min-agreement", limit, "-o", again)
    assert result.exit_code == 4
    assert "INCONCLUSIVE: student.int8.onnx" in result.stdout
    assert "settle" in result.stdout
    assert rewritten(again, "manifest.json")["provenance"]["rejected"]
    assert delivered(again) == delivered(first[0])
    allowed = compress(*inputs, "--min-agreement", limit, "-o", again, "--allow-inconclusive")
    assert allowed.exit_code == 0


def test_names_that_mean_the_same_to_the_encoder_are_pointed_out(
    again: Path, inputs: tuple[str, ...], tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("hot-dog\nhot dog\ncat\nship\n")
    result = compress(inputs[0], "--labels", labels, *OPTIONS, "--set", "distill.rounds=1", "-o", again)
    assert "The class names 'hot-dog' and 'hot dog' mean the same to the text encoder" in result.stderr


def test_a_failed_gate_keeps_the_files_and_marks_them_rejected(
    again: Path, inputs: tuple[str, ...], first: tuple[Path, Result]
) -> None:
    limits = (*PASSING, "--set", "gates.max_size_mb=0.001", "--allow-inconclusive")
    result = compress(*inputs, *limits, "-o", again, "--json")
    assert result.exit_code == 4
    assert json.loads(result.stdout)["verdict"] == "FAIL"
    provenance = rewritten(again, "manifest.json")["provenance"]
    assert (provenance["verdict"], provenance["rejected"]) == ("FAIL", True)
    assert delivered(again) == delivered(first[0])
    assert verify_manifest(again) == []


@pytest.mark.parametrize(("limit", "verdict"), [("100000", "PASS"), ("0.000001", "FAIL")])
def test_the_time_on_this_cpu_is_judged_where_the_target_is_a_cpu(
    again: Path, inputs: tuple[str, ...], limit: str, verdict: str
) -> None:
    result = compress(*inputs, *PASSING, "--target", "onnx", "--max-latency-ms", limit, "-o", again, "--json")
    told = json.loads(result.stdout)
    assert (told["verdict"], result.exit_code) == (verdict, 0 if verdict == "PASS" else 4)
    words = f"ms is {'within' if verdict == 'PASS' else 'over'} the allowed {float(limit):.6g} ms"
    assert words in told["reason"]
    assert words in (again / "report.html").read_text()
    cases = ElementTree.parse(again / "junit.xml").getroot().iter("testcase")
    (case,) = [case for case in cases if (case.get("classname"), case.get("name")) == ("student.onnx", "latency")]
    assert [outcome.tag for outcome in case] == ([] if verdict == "PASS" else ["failure"])


# Trouble on the way


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Nothing that distillation writes fits on the disk."""
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        if "pool-" in Path(f"/proc/self/fd/{descriptor}").readlink().name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield patch


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the name of an open file is asked of /proc")
def test_a_full_disk_is_told_and_the_run_continues_when_there_is_room(
    embedded: Path, first: tuple[Path, Result], inputs: tuple[str, ...], full_disk: pytest.MonkeyPatch
) -> None:
    words = [*inputs, *PASSING, "--target", "onnx", "-o", str(embedded)]
    result = compress(*words)
    assert result.exit_code == 5
    assert result.stdout == ""
    assert "compress: The disk is full: " in result.stderr
    assert result.stderr.endswith("Free some space. The same command then continues.\n")
    assert not (embedded / "work" / "3-distill").exists()
    assert delivered(embedded) == set()
    full_disk.undo()
    assert compress(*words).exit_code == 0
    assert sha256_of(embedded / "student.safetensors") == sha256_of(first[0] / "student.safetensors")


def test_a_second_run_into_the_same_folder_is_refused(again: Path, inputs: tuple[str, ...]) -> None:
    with exclusive(again / "work"):
        result = compress(*inputs, *PASSING, "-o", again)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"compress: Another run is writing into '{again}'.\nWait for it, or give another folder with -o.\n"
    )
    assert verify_manifest(again) == []
