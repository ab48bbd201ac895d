"""The benchmark that measures a delivered folder on real images."""

import io
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command import LABELS, compress, save_teacher

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
