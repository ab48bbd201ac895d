from pathlib import Path

import torch
from torch import Tensor

from compress.pipeline.synthesis.pool import ImagePool, as_float


def numbered(*values: int) -> tuple[Tensor, Tensor]:
    """Images `[N, 3, 2, 2]` of one value each, and ten times the value as their class."""
    images = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return images.contiguous(), 10 * torch.tensor(values)


def values(pool: ImagePool) -> list[int]:
    return pool.images[:, 0, 0, 0].tolist()


def test_batches_are_appended() -> None:
    pool = ImagePool(limit=10)
    assert len(pool) == 0
    pool.add(*numbered(1, 2))
    pool.add(*numbered(3, 4, 5))
    assert len(pool) == 5
    assert values(pool) == [1, 2, 3, 4, 5]
    assert pool.targets.tolist() == [10, 20, 30, 40, 50]
    assert pool.images.dtype == torch.uint8


def test_beyond_the_limit_the_oldest_leave_with_their_classes() -> None:
    pool = ImagePool(limit=4)
    for batch in [(1, 2, 3), (4, 5), (6,)]:
        pool.add(*numbered(*batch))
    assert values(pool) == [3, 4, 5, 6]
    assert pool.targets.tolist() == [30, 40, 50, 60]


def test_the_limit_holds_for_the_very_first_batch() -> None:
    pool = ImagePool(limit=2)
    pool.add(*numbered(1, 2, 3))
    assert values(pool) == [2, 3]
    assert pool.targets.tolist() == [20, 30]


def test_samples_are_images_of_the_pool_in_the_unit_range_drawn_with_replacement() -> None:
    pool = ImagePool(limit=10)
    pool.add(*numbered(0, 51, 255))
    sample = pool.at(pool.draw(64))
    assert sample.shape == (64, 3, 2, 2)
    assert sample.dtype == torch.float32
    torch.testing.assert_close(sample.unique(), torch.tensor([0.0, 0.2, 1.0]))  # 51 / 255 = 0.2


def test_the_global_seed_decides_on_what_is_drawn() -> None:
    pool = ImagePool(limit=300)
    pool.add(*numbered(*range(200)))
    torch.manual_seed(1)
    once = pool.draw(16)
    assert not torch.equal(pool.draw(16), once)
    torch.manual_seed(1)
    assert torch.equal(pool.draw(16), once)


def test_surprising_images_are_replayed_the_more_often() -> None:
    pool = ImagePool(limit=10, priority=0.5)
    pool.add(*numbered(0, 1, 2))
    pool.seen(torch.arange(3), torch.tensor([1.0, 4.0, 9.0]))
    counts = pool.draw(6000).bincount(minlength=3)
    # Their square roots are 1, 2 and 3 of 6: 1,000, 2,000 and 3,000 of 6,000, standard deviation below 39.
    assert (counts - torch.tensor([1000, 2000, 3000])).abs().max() < 200


def test_without_a_priority_surprise_changes_nothing() -> None:
    pool, other = ImagePool(limit=10), ImagePool(limit=10)
    for each in (pool, other):
        each.add(*numbered(0, 1, 2))
    pool.seen(torch.arange(3), torch.tensor([0.0, 0.0, 9.0]))
    torch.manual_seed(0)
    drawn = pool.draw(20)
    torch.manual_seed(0)
    assert torch.equal(other.draw(20), drawn)


def test_new_images_count_as_the_most_surprising_and_the_oldest_leave_with_their_surprise() -> None:
    pool = ImagePool(limit=4, priority=1.0)
    pool.add(*numbered(1, 2))
    assert pool.surprise.tolist() == [1.0, 1.0]
    pool.seen(torch.tensor([0, 1]), torch.tensor([0.5, 3.0]))
    pool.add(*numbered(3, 4, 5))
    assert pool.surprise.tolist() == [3.0, 3.0, 3.0, 3.0]
    pool.seen(torch.tensor([2]), torch.tensor([0.25]))
    assert (values(pool)[2], pool.surprise.tolist()) == (4, [3.0, 3.0, 0.25, 3.0])


def test_images_that_the_student_knows_are_still_drawn_now_and_then() -> None:
    pool = ImagePool(limit=2, priority=1.0)
    pool.add(*numbered(1, 2))
    pool.seen(torch.tensor([0, 1]), torch.zeros(2))
    assert set(pool.draw(64).tolist()) == {0, 1}


def test_a_pool_comes_back_from_its_file(tmp_path: Path) -> None:
    pool = ImagePool(limit=10)
    images, targets = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8), torch.arange(6)
    pool.add(images.contiguous(memory_format=torch.channels_last), targets)
    pool.save(tmp_path / "pool.safetensors")
    again = ImagePool.load(tmp_path / "pool.safetensors")
    assert torch.equal(again.images, images)
    assert torch.equal(again.targets, targets)
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "pool.safetensors").read_bytes()


def test_a_loaded_pool_keeps_the_newest_up_to_its_limit(tmp_path: Path) -> None:
    pool = ImagePool(limit=10)
    pool.add(*numbered(1, 2, 3))
    pool.save(tmp_path / "pool.safetensors")
    assert values(ImagePool.load(tmp_path / "pool.safetensors", limit=2)) == [2, 3]


def test_bytes_become_floats_and_come_back_unharmed() -> None:
    every_byte = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, -1, -1)
    floats = as_float(every_byte)
    assert (floats.min().item(), floats.max().item()) == (0.0, 1.0)
    assert floats.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal((floats * 255).round().to(torch.uint8), every_byte)
