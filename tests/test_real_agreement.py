"""The benchmarks that measure delivered folders on real images."""

import io
import json
import runpy
import shutil
import subprocess
import sys
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import ablation
import ceiling
import curve
import latency
import probe_variance
import verdict_calibration
from compress.exporters.camera_input import with_camera_input
from compress.pipeline.distillation.checkpoint import Checkpoint, save_checkpoint
from compress.pipeline.proportions import proportion
from compress.pipeline.settings import assignment, merge, resolve_settings
from compress.pipeline.tensor_files import prefixed, write_tensors
from tests.command import LABELS, compress, save_teacher
from tests.graphs import linear_model

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "real_agreement.py"


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    save_teacher(folder / "teacher.pt")
    (folder / "labels.txt").write_text("\n".join(LABELS))
    output = folder / "output"
    words = ("--labels", folder / "labels.txt", "--recipe", "smoke", "-o", output)
    assert compress(folder / "teacher.pt", *words).exit_code in {0, 4}
    return output


def run(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
    with pytest.raises(SystemExit) as ending:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return int(ending.value.code or 0)


def test_every_artifact_is_measured_against_the_teacher(
    delivered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", images=images, labels=np.zeros(20, np.uint8))
    assert run(monkeypatch, delivered, "--data", tmp_path / "real.npz") == 0
    output = capsys.readouterr().out
    assert "20 real images" in output
    for artifact in ("teacher", "student.safetensors", "student.onnx", "student.int8.onnx"):
        assert artifact in output


def test_another_teacher_is_refused(
    delivered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads((delivered / "report.json").read_text())
    report["teacher"]["sha256"] = "0" * 64
    (tmp_path / "report.json").write_text(json.dumps(report))
    teacher = delivered.parent / "teacher.pt"
    assert run(monkeypatch, tmp_path, "--data", tmp_path / "none.npz", "--teacher", teacher) == 2
    assert "is not the teacher of" in capsys.readouterr().err


def test_encoded_images_end_to_end_are_decoded_in_order() -> None:
    decoded = runpy.run_path(str(SCRIPT))["decoded"]
    shades, files = (10, 200), []
    for shade in shades:
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4), (shade, shade, shade)).save(buffer, "PNG")
        files.append(np.frombuffer(buffer.getvalue(), np.uint8))
    offsets = np.cumsum([0, *(len(file) for file in files)])
    images = decoded(np.concatenate(files), offsets, None)
    assert images.shape == (2, 3, 4, 4)
    assert [int(image.max()) for image in images] == list(shades)


# The curve


def test_the_copies_of_a_run_are_measured_one_by_one(
    delivered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", images=images, labels=np.zeros(20, np.uint8))
    (tmp_path / "copies").mkdir()
    weights = prefixed("average", load_file(delivered / "student.safetensors"))
    for seconds in (60, 120):
        write_tensors(tmp_path / "copies" / f"{seconds:06}.safetensors", weights)
    words = ("curve.py", delivered, "--data", tmp_path / "real.npz", "--copies", tmp_path / "copies")
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    assert curve.main() == 0
    output = capsys.readouterr().out
    assert all(expected in output for expected in ("20 real images", " 60 ", " 120 "))


def test_the_newest_checkpoint_is_copied_under_its_seconds_once_the_student_learns(tmp_path: Path) -> None:
    def save(seconds: float, kd_steps: int) -> None:
        numbers = {"seconds": seconds, "history": [{"kd_steps": 0}, {"kd_steps": kd_steps}]}
        tensors = {"average.weight": torch.tensor(seconds)}
        save_checkpoint(tmp_path, Checkpoint(tensors=tensors, numbers=numbers, between_rounds=True))

    copies = tmp_path / "copies"
    copies.mkdir()
    assert not curve.copy_newest(tmp_path, copies)  # there is none yet
    save(10.0, 0)
    assert not curve.copy_newest(tmp_path, copies)  # it has learned nothing yet
    save(70.2, 120)
    assert curve.copy_newest(tmp_path, copies)
    assert load_file(copies / "000070.safetensors")["average.weight"] == torch.tensor(70.2)


# Latency


def test_the_files_of_a_folder_are_timed_against_their_teacher_in_turns(
    delivered: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["latency.py", str(delivered), "--batches", "2", "--threads", "1", "--rounds", "1", "--json"]
    )
    assert latency.main() == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["batch"], row["threads"]) for row in rows] == [
        (name, 2, 1) for name in ("teacher.onnx", "student.int8.onnx", "student.onnx")
    ]
    assert rows[0]["times_faster"] == 1
    assert all(0 < row["p50"] <= row["p99"] for row in rows)
    assert rows[1]["bytes"] == (delivered / "student.int8.onnx").stat().st_size


def test_files_that_take_bytes_and_files_that_take_numbers_are_timed_in_turns(tmp_path: Path) -> None:
    models = {"plain": linear_model(), "camera": with_camera_input(linear_model())}
    for name, model in models.items():
        onnx.save(model, tmp_path / name)
    sessions = {name: latency.session(tmp_path / name, 1) for name in models}
    timed = latency.in_turns(sessions, np.zeros((2, 1, 2, 2), np.float32), rounds=1)
    assert timed.keys() == models.keys() and all(model.p50 > 0 for model in timed.values())


def test_latency_is_the_median_and_the_99th_percentile_in_milliseconds() -> None:
    # Of 1 to 200 ms the median is 100.5; at least 99 % of them do not exceed 198.
    assert latency.latency_of([number / 1000 for number in range(1, 201)]) == pytest.approx((100.5, 198))


# The ceiling


def test_the_ceiling_learns_from_real_images_with_the_recipe_s_steps(
    delivered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (24, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", images=images, labels=np.zeros(24, np.uint8))
    teacher = json.loads((delivered / "work" / "command.json").read_bytes())["checkpoint"]
    words = [
        teacher,
        "--train",
        tmp_path / "real.npz",
        "--data",
        tmp_path / "real.npz",
        "--images",
        "16",
        "--steps",
        "2",
    ]
    words += ["--student", "inherit-1-1", "--set", "threads=1"]
    monkeypatch.setattr(sys, "argv", ["ceiling.py", *map(str, words)])
    assert ceiling.main() == 0
    assert capsys.readouterr().out.startswith("inherit-1-1: ")


# The ablation


def test_a_row_of_the_ablation_is_measured_once(
    delivered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", images=images, labels=np.zeros(20, np.uint8))
    teacher, labels = delivered.parent / "teacher.pt", delivered.parent / "labels.txt"
    commands: list[list[str]] = []

    def compress_instead(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        shutil.copytree(delivered, command[command.index("-o") + 1])
        return subprocess.CompletedProcess(command, 4)

    monkeypatch.setattr(subprocess, "run", compress_instead)
    words = ("ablation.py", teacher, "--labels", labels, "--data", tmp_path / "real.npz", "--budget", "5m")
    monkeypatch.setattr(
        sys, "argv", [str(word) for word in (*words, "-o", tmp_path / "out", "--rows", "the recipe", "Mixup only")]
    )
    assert ablation.main() == ablation.main() == 0
    assert [command[-1] for command in commands] == [str(tmp_path / "out" / "row-00"), "distill.mixing=mixup"]
    assert all(command[command.index("--recipe") + 1] == "balanced" for command in commands)
    assert "Mixup only" in capsys.readouterr().out
    assert len((tmp_path / "out" / "rows.jsonl").read_text().splitlines()) == 2


def test_a_failing_row_of_the_ablation_stops_those_that_have_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def failing(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        started.append(command[command.index("-o") + 1])
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", failing)
    words = ("ablation.py", "t.pt", "--labels", "l.txt", "--data", "r.npz", "--budget", "5m", "-o", tmp_path / "out")
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    with pytest.raises(SystemExit, match="compress ended with exit code 1"):
        ablation.main()
    assert len(started) < 4


def test_every_row_of_the_ablation_is_a_setting_that_exists() -> None:
    for settings in ablation.ROWS.values():
        resolve_settings(reduce(merge, map(assignment, settings), dict[str, Any]()), environment={})


# Whether probes tell the truth


def test_the_rank_correlation_is_spearmans() -> None:
    # Ranks 0 1 2 3 against 1 0 2 3: 1 - 6 * (1 + 1) / (4 * 15) = 0.8
    first, second = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.6, 0.5, 0.7, 0.9])
    assert verdict_calibration.rank_correlation(first, second) == pytest.approx(0.8)
    assert verdict_calibration.rank_correlation(first, -first) == pytest.approx(-1)
    assert np.isnan(verdict_calibration.rank_correlation(first, np.ones(4)))
    assert verdict_calibration.ranks(np.array([3.0, 1.0, 3.0])).tolist() == [1.5, 0, 1.5]


def test_probes_are_counted_by_kind() -> None:
    kind = np.array(["mixed", "synthesised", "mixed", "synthesised"])
    shares = verdict_calibration.agreement_of_kinds(np.array([0, 1, 2, 3]), np.array([0, 1, 0, 0]), kind)
    assert shares == {"synthesised": 0.5, "mixed": 0.5, "all probes": 0.5}


def test_probes_are_set_against_real_images_for_every_artifact(
    delivered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", images=images, labels=np.zeros(20, np.uint8))
    copies = tmp_path / "copies"
    copies.mkdir()
    write_tensors(copies / "000120.safetensors", prefixed("average", load_file(delivered / "student.safetensors")))
    words = (f"{delivered}={copies}", "--data", tmp_path / "real.npz")
    outputs = ("--plot", tmp_path / "plot.svg", "--json", tmp_path / "rows.json")
    monkeypatch.setattr(sys, "argv", ["verdict_calibration.py", *map(str, (*words, *outputs))])
    assert verdict_calibration.main() == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    last, copied = rows["output/student.safetensors"], rows["output after 120 s"]
    assert (last["probes"], last["real"]) == (copied["probes"], copied["real"])
    assert (tmp_path / "plot.svg").read_text().count("<circle") == len(rows)
    said = capsys.readouterr().out
    assert "rank correlation" in said


def test_the_variance_between_generators_is_set_against_what_their_intervals_say() -> None:
    # Of 100 images 80, 90 and 100 agree: 10 points between them. Said is the root of (0.16 + 2 · 0.09 + 0) / 3 / 100, as two
    # views of the second are worth one image. The intervals of 80 and of 100 leave 90 out.
    parts = [proportion(80, 100, 1.0), proportion(90, 100, 2.0), proportion(100, 100, 1.0)]
    said = (0.16 + 2 * 0.09 + 0) / 3 / 100
    row = probe_variance.row_of("student.onnx", parts)
    assert row[:4] == ("student.onnx", "90.0 %", "10.00", f"{100 * said**0.5:.2f}")
    assert row[4:] == (f"{0.01 / said:.2f}", "1 of 3", "1.33")


def test_every_artifact_is_asked_about_probes_of_several_generators(
    delivered: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["probe_variance.py", str(delivered), "--sets", "2", "--batches", "1"])
    assert probe_variance.main() == 0
    told = capsys.readouterr().out
    assert "2 sets of " in told
    assert all(name in told for name in ("student.safetensors", "student.onnx", "student.int8.onnx"))
