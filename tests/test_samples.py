import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from compress.pipeline.distillation.samples import IMAGES_A_CLASS, MOST_CLASSES, shown_classes, write_samples
from compress.pipeline.distillation.stage import FINAL_SAMPLES_FILE, WARMUP_SAMPLES_FILE
from compress.pipeline.report.png import class_grid
from compress.pipeline.synthesis.pool import NO_CLASS, ImagePool
from tests.test_distill import interrupt, run


def pixels_of(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture)


def pool(targets: list[int], size: tuple[int, int] = (8, 8)) -> ImagePool:
    """Plain images whose brightness tells their place in the pool."""
    made = ImagePool(1000)
    shades = torch.arange(len(targets), dtype=torch.uint8)
    made.add(shades.view(-1, 1, 1, 1).expand(-1, 1, *size).clone(), torch.tensor(targets))
    return made


def shades(png: bytes, tile: int) -> list[list[int | None]]:
    """The brightness of every place in a grid, None where there is no image."""
    corners = pixels_of(png)[:: tile + 2, :: tile + 2]
    return [[int(pixel[0]) if pixel[3] else None for pixel in row] for row in corners]


def test_every_class_has_a_row_of_its_newest_images(tmp_path: Path) -> None:
    grid = write_samples(pool([0, 2] * 8 + [5]), tmp_path / "grid.png", "at the end")
    assert (grid.file_name, grid.moment, grid.classes) == ("grid.png", "at the end", (0, 2, 5))
    assert shades((tmp_path / "grid.png").read_bytes(), tile=64) == [
        [4, 6, 8, 10, 12, 14],
        [5, 7, 9, 11, 13, 15],
        [16, None, None, None, None, None],
    ]


@pytest.mark.parametrize(("size", "drawn"), [((8, 8), (64, 64)), ((32, 20), (64, 40)), ((224, 112), (64, 32))])
def test_pictures_are_of_a_size_whatever_the_images_are(
    tmp_path: Path, size: tuple[int, int], drawn: tuple[int, int]
) -> None:
    write_samples(pool([0, 1], size), tmp_path / "grid.png", "at the end")
    height, width, _ = pixels_of((tmp_path / "grid.png").read_bytes()).shape
    assert (height, width) == (2 * drawn[0] + 2, IMAGES_A_CLASS * (drawn[1] + 2) - 2)


def test_of_many_classes_some_are_shown_from_the_first_to_the_last() -> None:
    classes = shown_classes(torch.arange(1000).repeat(2))
    assert (len(classes), classes[0], classes[-1]) == (MOST_CLASSES, 0, 999)
    assert {later - earlier for earlier, later in itertools.pairwise(classes)} <= {66, 67}


def test_only_classes_that_have_an_image_are_shown() -> None:
    assert shown_classes(torch.tensor([7, NO_CLASS, 3, 3, NO_CLASS])) == [3, 7]


def test_a_row_is_drawn_in_its_colours_and_ends_in_transparent_pixels() -> None:
    random = np.random.default_rng(0)
    rows = [random.integers(0, 256, (count, 3, 4, 6), dtype=np.uint8) for count in (2, 1)]
    pixels = pixels_of(class_grid(rows, columns=2, scale=1))
    assert pixels.shape == (2 * 4 + 2, 2 * 6 + 2, 4)
    assert (pixels[6:, :6, :3] == rows[1][0].transpose(1, 2, 0)).all()
    assert not pixels[6:, 8:].any()


def test_a_grid_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="a grid needs at least one row"):
        class_grid([], columns=2)


def pictures(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in (WARMUP_SAMPLES_FILE, FINAL_SAMPLES_FILE)]


def test_a_run_leaves_a_picture_of_its_warm_up_and_one_of_its_end(tmp_path: Path) -> None:
    record, _ = run(tmp_path / "whole")
    assert [(grid.file_name, grid.moment, grid.classes) for grid in record.samples] == [
        (WARMUP_SAMPLES_FILE, "after warm-up", (0, 1, 2, 3)),
        (FINAL_SAMPLES_FILE, "at the end", (0, 1, 2, 3)),
    ]
    first, last = pictures(tmp_path / "whole")
    assert pixels_of(first).shape == pixels_of(last).shape == (4 * 66 - 2, 6 * 66 - 2, 4)
    assert first != last
    for after in (2, 4):  # the warm-up's last round, and one after the picture of it
        folder: Any = tmp_path / f"cut {after}"
        interrupt(folder, after)
        again, _ = run(folder)
        assert again.samples == record.samples
        assert pictures(folder) == [first, last]
