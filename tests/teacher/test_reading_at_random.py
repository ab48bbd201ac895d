"""Honest and hostile files with random damage: each is read or refused, and nothing else happens."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.reading import read_checkpoint
from tests.teacher.benign import BENIGN
from tests.teacher.hostile import HOSTILE

LARGEST_SEED = 60_000
OPCODES = (b"R", b"b", b"s", b"u", b".", b"Q", b"(", b"t", b"0", b"2", b"h\0", b"\x85", b"e", b"a")
EXTREMES = (bytes(8), b"\xff" * 8, (2**63).to_bytes(8, "little"), (1).to_bytes(8, "big"))
ANCHORS = (b"_rebuild", b"storage", b"PK\x01\x02", b"PK\x05\x06", b"shape")
"""What damage near to is worth more than among the numbers."""


def seeds(folder: Path) -> Iterator[bytes]:
    for name, maker in BENIGN.items():
        (folder / name).mkdir()
        path = maker(folder / name)
        if path.is_file() and path.suffix != ".json":
            yield path.read_bytes()
    for make in HOSTILE.values():
        yield make(folder / "canary")


def damaged(whole: bytes, dice: random.Random) -> bytes:
    """One to sixteen changes: bytes, bits, extremes, opcodes, cuts, copies."""
    data = bytearray(whole)
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        at = dice.randrange(len(data))
        if dice.random() < 0.5:
            at = max(data.find(dice.choice(ANCHORS)), 0) + dice.randrange(200)
        at, length = min(at, len(data) - 1), dice.randrange(1, 60)
        other = dice.randrange(len(data))
        patch = dice.choice((dice.randbytes(1), dice.choice(EXTREMES), bytes(data[other : other + length])))
        end = dice.choice((at, at + len(patch), at + len(patch), at + len(patch), at + length))
        data[at:end] = dice.choice((patch, patch, patch, dice.choice(OPCODES), b""))
        data = data or bytearray(b"x")
    return bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_damage_ends_in_a_sentence_or_in_weights(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    wholes = [content for content in seeds(tmp_path) if 0 < len(content) < LARGEST_SEED]
    path = tmp_path / "damaged"
    refused = 0
    for _ in range(5_000):
        path.write_bytes(damaged(dice.choice(wholes), dice))
        try:
            read_checkpoint(path)
        except InputError as error:
            assert error.message.isprintable()
            refused += 1
    assert 2_500 < refused < 5_000
    assert not (tmp_path / "canary").exists()
