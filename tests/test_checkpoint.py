from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from compress.exporters.bundle import write_file
from compress.pipeline.distillation import checkpoint
from compress.pipeline.distillation.checkpoint import (
    INDEX,
    load_checkpoint,
    momentum_of,
    remove_checkpoint,
    restore_momentum,
    save_checkpoint,
)
from compress.pipeline.tensor_files import prefixed, under, write_tensors
from tests.tiny import copied, same_tensors

TENSORS = {"student.weight": torch.arange(6.0).view(2, 3), "counter": torch.tensor(7)}
NUMBERS = {"best": 0.1 + 0.2, "unknown": float("inf"), "history": [{"round": 0, "loss": None}]}


def fill(folder: Path, rounds: int) -> None:
    """A checkpoint after each of the rounds, every one of which made a chunk of the pool."""
    for number in range(rounds):
        write_tensors(folder / f"pool-{number:05}.safetensors", {"images": torch.full((2, 3), number)})
        save_checkpoint(folder, number, {**TENSORS, "round": torch.tensor(number)}, NUMBERS)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def flip_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 0x01
    path.write_bytes(content)


# Saving and loading


def test_what_was_saved_comes_back_exactly(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    found = load_checkpoint(tmp_path)
    assert found is not None
    number, tensors, numbers = found
    assert number == 0
    assert same_tensors(tensors, {**TENSORS, "round": torch.tensor(0)})
    assert numbers == NUMBERS  # floats to the last bit


def test_the_last_round_counts_and_older_ones_are_not_kept(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    found = load_checkpoint(tmp_path)
    assert found is not None and found[0] == 2 and found[1]["round"] == 2
    assert names(tmp_path) == {
        INDEX,
        "checkpoint-00002.safetensors",
        "pool-00000.safetensors",
        "pool-00001.safetensors",
        "pool-00002.safetensors",
    }


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None


def test_any_layout_in_memory_is_saved(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    parameter = nn.Parameter(torch.randn(3, 3)).t()
    save_checkpoint(tmp_path, 0, {"weight": weight, "parameter": parameter}, {})
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert torch.equal(found[1]["weight"], weight)
    assert torch.equal(found[1]["parameter"], parameter)


def test_a_chunk_that_no_finished_round_made_is_dropped(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    (tmp_path / "pool-00002.safetensors").write_bytes(b"cut sho")
    assert load_checkpoint(tmp_path) is not None
    assert not (tmp_path / "pool-00002.safetensors").exists()
    assert (tmp_path / "pool-00001.safetensors").exists()


@pytest.mark.parametrize("survives", ["the old index", "nothing"])
def test_a_crash_while_saving_leaves_the_round_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survives: str
) -> None:
    rounds = 2 if survives == "the old index" else 0
    fill(tmp_path, rounds)

    def crash(path: Path, content: bytes) -> None:
        if path.name == INDEX:
            raise KeyboardInterrupt
        write_file(path, content)

    monkeypatch.setattr(checkpoint, "write_file", crash)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, rounds, TENSORS, NUMBERS)
    found = load_checkpoint(tmp_path)
    if survives == "nothing":
        assert found is None
    else:
        assert found is not None and found[0] == 1


# Damage


@pytest.mark.parametrize("position", [0, 9, 60, 200, -100, -66, -65, -1])
@pytest.mark.parametrize("file", [INDEX, "checkpoint-00001.safetensors", "pool-00000.safetensors"])
def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path, file: str, position: int) -> None:
    fill(tmp_path, 2)
    assert load_checkpoint(tmp_path) is not None
    flip_bit(tmp_path / file, position)
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("file", [INDEX, "checkpoint-00001.safetensors", "pool-00000.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"\n"])
def test_a_missing_or_replaced_file_is_noticed(tmp_path: Path, file: str, content: bytes | None) -> None:
    fill(tmp_path, 2)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    assert load_checkpoint(tmp_path) is None


def test_damage_that_came_before_a_later_round_is_still_noticed(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    flip_bit(tmp_path / "pool-00000.safetensors", -1)
    save_checkpoint(tmp_path, 1, TENSORS, NUMBERS)
    assert load_checkpoint(tmp_path) is None


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


def test_removing_a_checkpoint_leaves_everything_else(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    for name in ("pool.safetensors", "student.safetensors", "seconds.json"):
        (tmp_path / name).write_bytes(b"")
    remove_checkpoint(tmp_path)
    assert names(tmp_path) == {"pool.safetensors", "student.safetensors", "seconds.json"}
    remove_checkpoint(tmp_path)  # once more does no harm


# The optimiser


def learner() -> tuple[nn.Module, torch.optim.SGD]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network, torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)


def step(network: nn.Module, optimiser: torch.optim.SGD, images: Tensor) -> None:
    optimiser.zero_grad()
    network(images).square().sum().backward()
    optimiser.step()


def test_before_the_first_step_there_is_no_momentum() -> None:
    network, optimiser = learner()
    assert momentum_of(optimiser) == {}
    restore_momentum(optimiser, {})
    step(network, optimiser, torch.rand(2, 3, 4, 4))


def test_without_momentum_nothing_is_kept() -> None:
    network, _ = learner()
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    step(network, optimiser, torch.rand(2, 3, 4, 4))
    assert momentum_of(optimiser) == {}


def test_an_optimiser_with_its_momentum_restored_goes_on_bit_for_bit(tmp_path: Path) -> None:
    batches = [0.1 * torch.rand(2, 3, 4, 4) for _ in range(4)]
    network, optimiser = learner()
    for batch in batches[:2]:
        step(network, optimiser, batch)
    save_checkpoint(tmp_path, 0, {**prefixed("student", network.state_dict()), **momentum_of(optimiser)}, {})
    found = load_checkpoint(tmp_path)
    assert found is not None
    continued, other = learner()
    continued.load_state_dict(under("student", found[1]))
    restore_momentum(other, {name: value for name, value in found[1].items() if name.isdigit()})
    for batch in batches[2:]:
        step(network, optimiser, batch)
        step(continued, other, batch)
    assert same_tensors(copied(continued), copied(network))
    assert same_tensors(momentum_of(other), momentum_of(optimiser))


def test_restored_momentum_is_laid_out_as_the_optimisers_own() -> None:
    network, optimiser = learner()
    step(network, optimiser, torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last))
    own = momentum_of(optimiser)
    _, other = learner()
    restore_momentum(other, {name: value.contiguous() for name, value in own.items()})
    assert [value.stride() for value in momentum_of(other).values()] == [value.stride() for value in own.values()]


# Names


def test_prefixes_are_put_on_and_taken_off() -> None:
    student, students = {"a.b": torch.zeros(1), "c": torch.ones(1)}, {"d": torch.ones(2)}
    both = {**prefixed("student", student), **prefixed("students", students)}
    assert sorted(both) == ["student.a.b", "student.c", "students.d"]
    assert same_tensors(under("student", both), student)
    assert same_tensors(under("students", both), students)
    assert under("stud", both) == {}
