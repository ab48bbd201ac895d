"""Two processes on the CPU against one that has the images of both."""

import shutil
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from compress.pipeline.distillation.checkpoint import load_checkpoint
from compress.pipeline.distillation.stage import POOL_FILE, PROBES_FILE, STUDENT_FILE
from compress.pipeline.parallel.world import ALONE
from compress.pipeline.probes import Probes
from compress.pipeline.records import DistillRecord
from compress.pipeline.synthesis.pool import ImagePool
from tests.parallel.ranks import CASES, RANKS, both_ranks, whole_run

TOLERANCE = 2e-5
"""Of float32 sums that are added in another order: absolute, and relative to the larger values."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [get_context("spawn").Process(target=both_ranks, args=(rank, folder)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * RANKS
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_do_what_one_process_does_on_the_joint_batch(folder: Path, name: str) -> None:
    ranks = [load_file(folder / f"{name}.{rank}") for rank in range(RANKS)]
    alone = CASES[name](ALONE)
    assert all(rank.keys() == alone.keys() for rank in ranks)
    for key, value in alone.items():
        found = [torch.cat([rank[key] for rank in ranks])] if key.startswith("rows.") else [rank[key] for rank in ranks]
        for tensor in found:
            # A pixel that lies between two of its 256 steps may be rounded to either.
            atol = 1 if tensor.dtype == torch.uint8 else TOLERANCE
            torch.testing.assert_close(tensor, value, rtol=TOLERANCE, atol=atol, msg=f"{key}: {tensor}, not {value}")


def pool(folder: Path) -> torch.Tensor:
    return ImagePool.load(folder / POOL_FILE).images


def test_a_run_of_two_ranks_gives_the_same_bits_when_it_is_repeated(folder: Path) -> None:
    for name in (STUDENT_FILE, POOL_FILE, PROBES_FILE):
        assert (folder / "once" / name).read_bytes() == (folder / "twice" / name).read_bytes()


def test_a_run_of_two_ranks_that_was_interrupted_gives_the_same_bits(folder: Path) -> None:
    for name in (STUDENT_FILE, POOL_FILE, PROBES_FILE):
        assert (folder / "once" / name).read_bytes() == (folder / "interrupted" / name).read_bytes()


def test_the_record_counts_the_images_of_all_ranks(folder: Path) -> None:
    record = DistillRecord.model_validate_json((folder / "once" / "record.json").read_text())
    assert (record.ranks, record.rounds, record.kd_steps) == (RANKS, 3, 6)
    assert [point.pool_images for point in record.history] == [32, 64, 80, 96, 112]
    assert record.pool_images == len(pool(folder / "once")) == 112


def test_no_image_of_one_rank_is_another_s(folder: Path) -> None:
    mine, others = (set(map(bytes, part.flatten(1).numpy())) for part in pool(folder / "once").chunk(RANKS))
    assert len(mine) == len(others) == 56
    assert not mine & others


def test_only_rank_0_writes(folder: Path) -> None:
    assert not (folder / "once.other").exists()


def test_the_probes_do_not_depend_on_the_number_of_ranks(folder: Path, tmp_path: Path) -> None:
    whole_run(tmp_path / "alone", ALONE)
    alone, both = (Probes.load(place / PROBES_FILE) for place in (tmp_path / "alone", folder / "once"))
    for one, other in zip(alone, both, strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_number_of_processes_does_not_continue_what_these_left(folder: Path, tmp_path: Path) -> None:
    left = shutil.copytree(folder / "once", tmp_path / "left")
    assert load_checkpoint(left).checkpoint is not None
    whole_run(left, ALONE)
    whole_run(tmp_path / "alone", ALONE)
    assert (left / STUDENT_FILE).read_bytes() == (tmp_path / "alone" / STUDENT_FILE).read_bytes()
