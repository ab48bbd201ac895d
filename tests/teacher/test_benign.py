"""The benign corpus: whatever honest training code saves is read, and comes out as it went in."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from compress.pipeline.teacher.reading import read_checkpoint
from tests.teacher.benign import BENIGN, put, shards, weights
from tests.teacher.checkpoints import Weights

COUNTER = ".num_batches_tracked"


def assert_same(read: Weights, expected: Weights) -> None:
    """All tensors but the counters, in float32, bit by bit."""
    wanted = {name: tensor.float() for name, tensor in expected.items() if not name.endswith(COUNTER)}
    assert read.keys() == wanted.keys()
    assert {name for name, tensor in wanted.items() if not torch.equal(read[name], tensor)} == set()
    assert {tensor.dtype for tensor in read.values()} == {torch.float32}


def test_the_corpus_has_at_least_eighty_checkpoints() -> None:
    assert len(BENIGN) >= 80


@pytest.mark.parametrize("name", BENIGN)
def test_a_benign_checkpoint_gives_back_its_weights(tmp_path: Path, name: str) -> None:
    checkpoint = read_checkpoint(BENIGN[name](tmp_path))
    assert_same(checkpoint.tensors, weights())
    counters = [key for key in weights() if key.endswith(COUNTER)]
    assert checkpoint.batches_tracked == {key.removesuffix(COUNTER): 0 for key in counters}
    assert len(checkpoint.sha256) == 64


@pytest.mark.parametrize("name", BENIGN)
def test_reading_a_benign_checkpoint_leaves_its_folder_as_it_was(tmp_path: Path, name: str) -> None:
    path = BENIGN[name](tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    read_checkpoint(path)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["torch zip", "torch legacy", "safetensors", "shards"])
def test_lower_precision_is_read_as_it_was_rounded(tmp_path: Path, dtype: torch.dtype, form: str) -> None:
    lower: dict[str, Tensor] = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights().items()
    }
    path = tmp_path / "teacher"
    if form == "safetensors":
        save_file(lower, path)
    elif form == "shards":
        path = shards(lower, tmp_path)
    else:
        path = put(lower, tmp_path, legacy=form == "torch legacy")
    assert_same(read_checkpoint(path).tensors, lower)


def test_what_is_read_does_not_keep_the_file_in_memory(tmp_path: Path) -> None:
    tensors = read_checkpoint(BENIGN["views_of_one_buffer"](tmp_path)).tensors
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors.values())
    assert all(tensor.is_contiguous() for tensor in tensors.values())


@pytest.mark.parametrize(
    ("name", "note"),
    [
        (
            "as_lightning_saves_it",
            "A tensor of the training's loss or metrics was left out, such as 'criterion.weight'.",
        ),
        ("as_weights_averaging_saves_it", "A tensor of integers was left out, such as 'n_averaged'."),
        (
            "teacher_and_student_of_a_distillation",
            "10 tensors of another network in the file were left out, such as 'student.conv1.weight'.",
        ),
        (
            "network_and_its_average",
            "50 tensors of another network in the file were left out, such as 'ema_model.module.conv1.weight'.",
        ),
        ("with_counts_of_a_profiler", "36 tensors of a profiler were left out, such as 'total_ops'."),
    ],
)
def test_what_is_left_out_is_told(tmp_path: Path, name: str, note: str) -> None:
    assert read_checkpoint(BENIGN[name](tmp_path)).warnings == (note,)


def test_nothing_is_told_where_nothing_is_left_out(tmp_path: Path) -> None:
    assert read_checkpoint(BENIGN["bare_state_dict"](tmp_path)).warnings == ()
