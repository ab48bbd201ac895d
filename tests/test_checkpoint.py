import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from compress.exporters.bundle import write_file
from compress.pipeline.distillation import checkpoint as module
from compress.pipeline.distillation.checkpoint import (
    Checkpoint,
    load_checkpoint,
    pool_chunk,
    remove_checkpoints,
    restore_state,
    save_checkpoint,
    state_of,
)
from compress.pipeline.errors import MissingResourceError
from compress.pipeline.tensor_files import prefixed, under, write_tensors
from tests.tiny import copied, same_tensors

TENSORS = {"student.weight": torch.arange(6.0).view(2, 3), "counter": torch.tensor(7)}
NUMBERS = {"best": 0.1 + 0.2, "unknown": float("inf"), "history": [{"round": 0, "loss": None}]}
NEWEST = ("checkpoint-000002.index", "checkpoint-000002.safetensors", "pool-000002.safetensors")


def save(folder: Path, number: int, *, between_rounds: bool = True) -> None:
    """The checkpoint of that number, with two images of its own."""
    before, _ = load_checkpoint(folder)
    tensors = {**TENSORS, "number": torch.tensor(number)}
    pool = before.pool if before else ()
    made = {"images": torch.full((2, 3), number), "targets": torch.zeros(2)}
    save_checkpoint(
        folder, Checkpoint(tensors=tensors, numbers=NUMBERS, between_rounds=between_rounds, pool=pool), made
    )


def fill(folder: Path, kinds: str = "rrr") -> None:
    """Checkpoints in a row: r after a round, w within one."""
    for number, kind in enumerate(kinds):
        save(folder, number, between_rounds=kind == "r")


def found(folder: Path, **options: bool) -> int | None:
    """Number of the checkpoint that is loaded."""
    loaded, _ = load_checkpoint(folder, **options)
    return None if loaded is None else int(loaded.tensors["number"])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def flip_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 0x01
    path.write_bytes(content)


# Saving and loading


def test_what_was_saved_comes_back_exactly(tmp_path: Path) -> None:
    fill(tmp_path)
    loaded, problems = load_checkpoint(tmp_path)
    assert loaded is not None and problems == ()
    assert same_tensors(dict(loaded.tensors), {**TENSORS, "number": torch.tensor(2)})
    assert loaded.numbers == NUMBERS  # floats to the last bit
    assert loaded.between_rounds
    images = [pool_chunk(tmp_path, entry)["images"] for entry in loaded.pool]
    assert torch.equal(torch.cat(images), torch.tensor([[n] * 3 for n in (0, 0, 1, 1, 2, 2)]))


def test_an_empty_folder_has_no_checkpoint_and_no_problem(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) == (None, ())


def test_the_last_two_are_kept_and_all_of_the_pool(tmp_path: Path) -> None:
    fill(tmp_path, "rrrr")
    checkpoints = {f"checkpoint-00000{number}.{kind}" for number in (2, 3) for kind in ("index", "safetensors")}
    assert names(tmp_path) == checkpoints | {f"pool-00000{number}.safetensors" for number in range(4)}


@pytest.mark.parametrize(
    ("kinds", "kept", "whole"), [("rrww", {1, 2, 3}, 1), ("rrw", {1, 2}, 1), ("rwwr", {2, 3}, 3), ("rwwrw", {3, 4}, 3)]
)
def test_the_last_one_between_two_rounds_is_kept_too(tmp_path: Path, kinds: str, kept: set[int], whole: int) -> None:
    fill(tmp_path, kinds)
    assert {int(path.name[11:17]) for path in tmp_path.glob("checkpoint-*.index")} == kept
    assert found(tmp_path) == len(kinds) - 1
    assert found(tmp_path, between_rounds=True) == whole


def test_any_layout_in_memory_is_saved(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    parameter = nn.Parameter(torch.randn(3, 3)).t()
    tensors = {"weight": weight, "parameter": parameter}
    save_checkpoint(tmp_path, Checkpoint(tensors=tensors, numbers={}, between_rounds=True))
    loaded, _ = load_checkpoint(tmp_path)
    assert loaded is not None
    assert torch.equal(loaded.tensors["weight"], weight)
    assert torch.equal(loaded.tensors["parameter"], parameter)


def test_going_back_leaves_out_the_images_that_came_later(tmp_path: Path) -> None:
    fill(tmp_path, "rw")
    loaded, _ = load_checkpoint(tmp_path, between_rounds=True)
    assert loaded is not None
    save_checkpoint(tmp_path, loaded)
    again, _ = load_checkpoint(tmp_path)
    assert again is not None
    assert [entry.name for entry in again.pool] == ["pool-000000.safetensors"]


@pytest.mark.parametrize("kinds", ["rr", ""])
@pytest.mark.parametrize("suffix", [".index", "checkpoint-000002.safetensors", "pool-000002.safetensors"])
def test_a_crash_while_saving_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: str, suffix: str
) -> None:
    fill(tmp_path, kinds)
    name = suffix if kinds else suffix.replace("2", "0")

    def crash(path: Path, content: bytes) -> None:
        if path.name.endswith(name):
            raise KeyboardInterrupt
        write_file(path, content)

    monkeypatch.setattr(module, "write_file", crash)
    monkeypatch.setattr("compress.pipeline.tensor_files.write_file", crash)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert found(tmp_path) == (1 if kinds else None)
    save(tmp_path, 3)
    assert found(tmp_path) == 3
    loaded, problems = load_checkpoint(tmp_path)
    assert loaded is not None and problems == ()
    # Nobody needs what the crash left.
    assert {path.name for path in tmp_path.glob("pool-*")} == {entry.name for entry in loaded.pool}


@pytest.mark.parametrize("file", ["checkpoint-000002.safetensors", "pool-000002.safetensors", ".index"])
def test_a_full_disk_leaves_what_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    fill(tmp_path, "rr")
    before = names(tmp_path)
    flush = os.fsync

    def full(descriptor: int) -> None:
        if file in Path(f"/proc/self/fd/{descriptor}").readlink().name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(MissingResourceError, match="The disk is full: ") as caught:
            save(tmp_path, 2)
    assert caught.value.hint == "Free some space. The same command then continues."
    assert names(tmp_path) == before
    save(tmp_path, 2)
    assert found(tmp_path) == 2


def test_a_file_that_the_system_refuses_for_its_size_leaves_what_there_was(tmp_path: Path) -> None:
    fill(tmp_path, "rr")
    before, (soft, hard) = names(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    large = Checkpoint(tensors={"weight": torch.zeros(1 << 20)}, numbers=NUMBERS, between_rounds=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(MissingResourceError, match="would be larger than files may be here"):
            save_checkpoint(tmp_path, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == before
    save_checkpoint(tmp_path, large)
    assert load_checkpoint(tmp_path).problems == ()


# Damage


@pytest.mark.parametrize("position", [0, 9, 60, 200, -100, -66, -65, -1])
@pytest.mark.parametrize("file", NEWEST)
def test_a_flipped_bit_anywhere_is_noticed_and_the_one_before_taken(tmp_path: Path, file: str, position: int) -> None:
    fill(tmp_path)
    flip_bit(tmp_path / file, position)
    loaded, problems = load_checkpoint(tmp_path)
    assert loaded is not None and int(loaded.tensors["number"]) == 1
    assert problems == (f"{file} {'is cut short or ' if file.endswith('index') else ''}was changed.",)
    assert found(tmp_path) == 1  # and stays so
    save(tmp_path, 3)
    assert found(tmp_path) == 3
    flip_bit(max(tmp_path.glob("checkpoint-*.index")), -1)
    assert found(tmp_path) == 1


@pytest.mark.parametrize("file", NEWEST)
@pytest.mark.parametrize("content", [None, b"", b"[]", b"\n"])
def test_a_missing_or_replaced_file_is_noticed_and_the_one_before_taken(
    tmp_path: Path, file: str, content: bytes | None
) -> None:
    fill(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    loaded, problems = load_checkpoint(tmp_path)
    assert loaded is not None and int(loaded.tensors["number"]) == 1
    if content is None and file.endswith(".index"):
        assert problems == ()  # the same as if it had never been finished
    else:
        (problem,) = problems
        assert file in problem


def test_damage_that_came_before_a_later_checkpoint_is_still_noticed(tmp_path: Path) -> None:
    fill(tmp_path, "r")
    before, _ = load_checkpoint(tmp_path)
    assert before is not None
    flip_bit(tmp_path / "pool-000000.safetensors", -1)
    save_checkpoint(tmp_path, before)
    loaded, problems = load_checkpoint(tmp_path)
    assert loaded is None
    assert problems == ("pool-000000.safetensors was changed.",) * 2


def test_one_that_its_successor_does_not_name_is_not_trusted(tmp_path: Path) -> None:
    fill(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    fill(other, "r")
    save_checkpoint(other, Checkpoint(tensors=TENSORS, numbers={}, between_rounds=True))
    # Whole in itself, of the right name, but of another run.
    for name in ("checkpoint-000001.index", "checkpoint-000001.safetensors"):
        shutil.copy(other / name, tmp_path / name)
    flip_bit(tmp_path / "checkpoint-000002.safetensors", -1)
    assert load_checkpoint(tmp_path) == (
        None,
        (
            "checkpoint-000002.safetensors was changed.",
            "checkpoint-000001.index is not the one that its successor names.",
        ),
    )


def test_a_file_that_is_written_halfway_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(KeyboardInterrupt):
        write_tensors(tmp_path / "student.safetensors", TENSORS)
    assert names(tmp_path) == set()


def test_tensors_are_written_as_safetensors(tmp_path: Path) -> None:
    write_tensors(tmp_path / "student.safetensors", TENSORS)
    assert same_tensors(load_file(tmp_path / "student.safetensors"), TENSORS)


def test_removing_checkpoints_leaves_everything_else(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / ".checkpoint-000003.safetensors.partial").write_bytes(b"cut sho")
    for name in ("pool.safetensors", "student.safetensors", "seconds.json"):
        (tmp_path / name).write_bytes(b"")
    remove_checkpoints(tmp_path)
    assert names(tmp_path) == {"pool.safetensors", "student.safetensors", "seconds.json"}
    remove_checkpoints(tmp_path)  # once more does no harm


# The optimiser


OPTIMISERS: dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "AdamW": partial(torch.optim.AdamW, lr=0.01),
}


@pytest.fixture(params=OPTIMISERS)
def learner(request: pytest.FixtureRequest) -> Callable[[], tuple[nn.Module, Optimizer]]:
    """Makes the same network again and again, and its optimiser."""

    def make() -> tuple[nn.Module, Optimizer]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network, OPTIMISERS[request.param](network.parameters())

    return make


def step(network: nn.Module, optimiser: Optimizer, images: Tensor) -> None:
    optimiser.zero_grad()
    network(images).square().sum().backward()
    optimiser.step()


Make = Callable[[], tuple[nn.Module, Optimizer]]


def test_before_the_first_step_an_optimiser_remembers_nothing(learner: Make) -> None:
    network, optimiser = learner()
    assert state_of(optimiser) == {}
    restore_state(optimiser, {})
    step(network, optimiser, torch.rand(2, 3, 4, 4))


def test_what_each_optimiser_remembers_has_a_name() -> None:
    network = nn.Linear(2, 1, bias=False)
    for make, names in (
        (OPTIMISERS["SGD"], ["momentum_buffer"]),
        (OPTIMISERS["AdamW"], ["step", "exp_avg", "exp_avg_sq"]),
    ):
        optimiser = make(network.parameters())
        step(network, optimiser, torch.ones(1, 2))
        assert list(state_of(optimiser)) == [f"0.{name}" for name in names]


def test_without_momentum_nothing_is_kept() -> None:
    network = nn.Linear(2, 1)
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    step(network, optimiser, torch.ones(1, 2))
    assert state_of(optimiser) == {}


def test_an_optimiser_that_was_restored_goes_on_bit_for_bit(learner: Make, tmp_path: Path) -> None:
    batches = [0.1 * torch.rand(2, 3, 4, 4) for _ in range(4)]
    network, optimiser = learner()
    for batch in batches[:2]:
        step(network, optimiser, batch)
    tensors = {**prefixed("student", network.state_dict()), **prefixed("optimiser", state_of(optimiser))}
    save_checkpoint(tmp_path, Checkpoint(tensors=tensors, numbers={}, between_rounds=True))
    loaded, _ = load_checkpoint(tmp_path)
    assert loaded is not None
    continued, other = learner()
    continued.load_state_dict(under("student", loaded.tensors))
    restore_state(other, under("optimiser", loaded.tensors))
    for batch in batches[2:]:
        step(network, optimiser, batch)
        step(continued, other, batch)
    assert same_tensors(copied(continued), copied(network))
    assert same_tensors(state_of(other), state_of(optimiser))


def test_what_is_restored_is_laid_out_as_the_optimisers_own(learner: Make) -> None:
    network, optimiser = learner()
    step(network, optimiser, torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last))
    own = state_of(optimiser)
    _, other = learner()
    restore_state(other, {name: value.contiguous() for name, value in own.items()})
    assert [value.stride() for value in state_of(other).values()] == [value.stride() for value in own.values()]


# Names


def test_prefixes_are_put_on_and_taken_off() -> None:
    student, students = {"a.b": torch.zeros(1), "c": torch.ones(1)}, {"d": torch.ones(2)}
    both = {**prefixed("student", student), **prefixed("students", students)}
    assert sorted(both) == ["student.a.b", "student.c", "students.d"]
    assert same_tensors(under("student", both), student)
    assert same_tensors(under("students", both), students)
    assert under("stud", both) == {}
