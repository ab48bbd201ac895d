"""How work and devices are shared out, without a second process."""

import os

import pytest
import torch

from compress.pipeline.device import choose_compute
from compress.pipeline.distillation.schedule import Speed
from compress.pipeline.errors import UsageError
from compress.pipeline.parallel.world import ALONE, World
from tests.tiny import tiny_settings


@pytest.mark.parametrize(("count", "size", "share"), [(128, 2, 64), (100, 8, 13), (3, 4, 1), (7, 1, 7)])
def test_a_share_is_rounded_up(count: int, size: int, share: int) -> None:
    assert World(size=size).share(count) == share


def test_alone_nothing_changes() -> None:
    value = torch.rand(3)
    assert ALONE.average(value) is ALONE.gathered(value) is value
    assert ALONE.own_seed() == ()
    assert ALONE.tell([1, "two"]) == [1, "two"]


@pytest.mark.parametrize(("asked", "local_size", "threads"), [(8, 2, 4), (1, 2, 1), (5, 2, 2), (None, 3, 2)])
def test_processes_of_one_machine_share_its_threads(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, local_size: int, threads: int
) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(World, "current", lambda: World(rank=1, size=4, local_rank=1, local_size=local_size))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6))
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    choose_compute(tiny_settings(threads=asked))
    assert set_to == [threads]


def test_several_processes_do_not_share_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "current", lambda: World(size=2, local_size=2))
    with pytest.raises(UsageError, match=r"^2 processes cannot share 'cuda:1'"):
        choose_compute(tiny_settings(device="cuda:1"))


def test_held_out_images_are_shared_with_nobody() -> None:
    speed = Speed(synthesis=2.0, adversarial_synthesis=3.0, kd_step=1.0, ranks=4)
    assert speed.held_out_synthesis == 4 * 2.0
    assert speed.times(0.5).held_out_synthesis == 4 * 1.0
