import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper

from compress.pipeline.teacher import open_teacher
from tests.graphs import model

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits"

Floats = NDArray[np.float32]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's folder on the path, as for a script that runs in it."""
    monkeypatch.syspath_prepend(EXAMPLE)


@pytest.fixture
def evaluate(scripts: None) -> ModuleType:
    return import_module("evaluate")


@pytest.fixture
def train_teacher(scripts: None) -> ModuleType:
    return import_module("train_teacher")


@pytest.fixture
def held_out(scripts: None) -> tuple[Floats, NDArray[np.int64]]:
    _, (images, classes) = import_module("digits_data").load_splits()
    return images, classes


@pytest.fixture(scope="module")
def linear_weight() -> Floats:
    """A student `[64, 10]` that imitates the teacher's logits on random images, as well as a linear network can."""
    images = torch.rand(2000, 1, 8, 8)
    with torch.no_grad():
        logits = open_teacher(EXAMPLE / "teacher.pt").logits(images)
    solution: Floats = torch.linalg.lstsq(images.flatten(1), logits).solution.numpy()
    return solution


def deliver(weight: Floats, path: Path, batch: int | str = "batch") -> None:
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    onnx.save(model(nodes, {"weight": weight}, image=(1, 8, 8), classes=10, batch=batch), path)


def test_the_split_holds_out_a_quarter_with_every_class_alike(held_out: tuple[Floats, NDArray[np.int64]]) -> None:
    images, classes = held_out
    assert images.shape == (450, 1, 8, 8)  # a quarter of 1,797, rounded up
    assert images.dtype == np.float32 and images.min() == 0 and images.max() == 1
    assert np.ptp(np.bincount(classes)) <= 3  # the digits themselves are 174 to 183 of each


def test_the_labels_are_ten_words() -> None:
    words = "zero one two three four five six seven eight nine"
    assert (EXAMPLE / "labels.txt").read_text().splitlines() == words.split()


def test_the_teacher_is_read_without_any_option() -> None:
    path = EXAMPLE / "teacher.pt"
    record = open_teacher(path).record
    assert path.stat().st_size < 1_000_000
    assert record.architecture == "ResNet-32 (CIFAR form, basic blocks, widths 16-24-32, option B shortcuts)"
    assert (record.input.channels, record.input.height, record.num_classes) == (1, 8, 10)
    assert record.parameters == 166_218
    assert {finding.severity for finding in record.findings} == {"note"}


def test_the_teacher_is_right_on_99_percent_of_the_held_out_images(held_out: tuple[Floats, NDArray[np.int64]]) -> None:
    images, classes = held_out
    with torch.no_grad():
        answers = open_teacher(EXAMPLE / "teacher.pt").logits(torch.from_numpy(images)).argmax(1).numpy()
    assert (answers == classes).mean() >= 0.99


def test_intake_sees_the_same_network_as_the_script_that_trained_it(
    train_teacher: ModuleType, held_out: tuple[Floats, NDArray[np.int64]]
) -> None:
    checkpoint = torch.load(EXAMPLE / "teacher.pt", weights_only=True)
    network = train_teacher.DigitsNet().eval()
    network.load_state_dict(checkpoint["state_dict"])
    images = torch.from_numpy(held_out[0][:20])
    with torch.no_grad():
        expected = network((images - checkpoint["mean"][0]) / checkpoint["std"][0])
        torch.testing.assert_close(open_teacher(EXAMPLE / "teacher.pt").logits(images), expected)


def test_training_writes_the_same_file_each_time(
    train_teacher: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_teacher, "EPOCHS", 1)
    monkeypatch.setattr(train_teacher, "BLOCKS_PER_STAGE", 1)
    threads = torch.get_num_threads()
    files = [tmp_path / "first" / "teacher.pt", tmp_path / "second" / "teacher.pt"]
    try:
        for path in files:
            path.parent.mkdir()
            monkeypatch.setattr(sys, "argv", ["train_teacher.py", str(path)])
            train_teacher.main()
    finally:
        torch.set_num_threads(threads)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert open_teacher(files[0]).record.input.height == 8
    assert "accuracy on 450 held-out images: 0." in capsys.readouterr().out


def test_shifted_images_move_by_at_most_one_pixel(train_teacher: ModuleType) -> None:
    dot = torch.zeros(200, 1, 8, 8)
    dot[:, :, 4, 4] = 1
    moved = train_teacher.shifted(dot)
    assert moved.sum() == 200
    assert moved.amax(0)[0].nonzero().tolist() == [[row, column] for row in (3, 4, 5) for column in (3, 4, 5)]


@pytest.mark.parametrize("batch", ["batch", 1, 64])
def test_the_evaluation_measures_a_student_whatever_its_batch(
    evaluate: ModuleType,
    linear_weight: Floats,
    held_out: tuple[Floats, NDArray[np.int64]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    batch: int | str,
) -> None:
    deliver(linear_weight, tmp_path / "student.onnx", batch)
    assert evaluate.main([str(tmp_path)]) == 0
    answers = (held_out[0].reshape(450, 64) @ linear_weight).argmax(1)
    row = next(line for line in capsys.readouterr().out.splitlines() if "fp32" in line)
    assert f"{(answers == held_out[1]).mean():.2%}" in row
    assert " 640 " in row  # 64 x 10 weights


def test_too_little_agreement_fails_the_evaluation(
    evaluate: ModuleType, linear_weight: Floats, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deliver(linear_weight, tmp_path / "student.onnx")
    deliver(0 * linear_weight, tmp_path / "student.int8.onnx")
    assert evaluate.main([str(tmp_path), "--min-agreement", "0.97"]) == 1
    captured = capsys.readouterr()
    assert "student, int8" in captured.out
    assert "student, int8: agreement 0." in captured.err and "is below 0.97" in captured.err


def test_a_folder_without_a_student_is_a_usage_error(
    evaluate: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        evaluate.main([str(tmp_path)])
    assert caught.value.code == 2
    assert "there is no student in" in capsys.readouterr().err


def test_a_teacher_that_intake_refuses_ends_with_its_sentence(
    evaluate: ModuleType,
    linear_weight: Floats,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    deliver(linear_weight, tmp_path / "student.onnx")
    (tmp_path / "teacher.pt").touch()
    monkeypatch.setattr(evaluate, "TEACHER", tmp_path / "teacher.pt")
    with pytest.raises(SystemExit) as caught:
        evaluate.main([str(tmp_path)])
    assert caught.value.code == 3
    assert "'teacher.pt' is empty." in capsys.readouterr().err


def test_a_missing_scikit_learn_is_one_sentence(scripts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "digits_data", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match=r"needs scikit-learn: pip install 'compress-edge\[examples\]'"):
        import_module("digits_data")
