"""Probes that the student learned from."""

import pytest
import torch
from torch import Tensor

from compress.pipeline import copies
from compress.pipeline.copies import copied, repeated


def images(count: int, seed: int, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def test_images_of_the_pool_are_found_wherever_they_lie_in_it() -> None:
    pool = images(50, seed=0)
    assert copied(torch.cat([images(7, seed=1), pool[[3, 49]]]), pool) == 2


def test_others_are_not() -> None:
    assert copied(images(20, seed=1), images(50, seed=0)) == 0


def test_a_copy_with_a_little_noise_is_a_copy_and_a_shifted_one_is_not() -> None:
    pool = images(10, seed=0)
    noise = torch.randint(-1, 2, pool.shape, generator=torch.Generator().manual_seed(2))
    assert copied((pool.int() + noise).clamp(0, 255).to(torch.uint8), pool) == 10
    assert copied(pool.roll(4, dims=3), pool) == 0


def test_a_large_pool_is_looked_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = images(9, seed=0)
    monkeypatch.setattr(copies, "AT_ONCE", 2)
    assert copied(pool, pool) == 9


def test_images_smaller_than_a_thumbnail_are_compared_as_they_are() -> None:
    pool = images(5, seed=0, size=4)
    assert copied(pool, pool) == 5 and copied(images(5, seed=1, size=4), pool) == 0


def test_images_are_counted_that_are_like_one_before_them() -> None:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=generator)
    near = (images[1].int() + 3).clamp(0, 255).to(torch.uint8)
    assert repeated(images) == 0
    assert repeated(torch.cat([images, near[None], images[:2]])) == 3
    assert repeated(images[:0]) == 0


def test_repeated_images_are_found_across_the_parts_that_are_compared_together(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    monkeypatch.setattr(copies, "AT_ONCE", 3)
    assert repeated(torch.cat([images, images])) == 7
