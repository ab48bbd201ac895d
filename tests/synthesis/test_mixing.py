import pytest
import torch

from compress.pipeline.synthesis.mixing import cutmix, mixed, mixup, rectangles


def numbered(count: int, side: int = 8) -> torch.Tensor:
    """Images of one grey each: 0, 1, 2, ..."""
    return torch.arange(float(count)).view(-1, 1, 1, 1).expand(count, 1, side, side).contiguous()


def test_a_rectangle_covers_the_share_that_its_draw_leaves() -> None:
    # 1 - 0.75 = 1/4 of the area is half of each side: of 8 rows and 4 columns around the centre, rows 2 to 5, columns 1 and 2
    mask = rectangles(torch.tensor([[0.75], [0.5], [0.5]]), 8, 4)[0]
    expected = torch.zeros(8, 4, dtype=torch.bool)
    expected[2:6, 1:3] = True
    assert torch.equal(mask, expected)


def test_a_rectangle_at_the_border_is_cut_off() -> None:
    mask = rectangles(torch.tensor([[0.75], [0.0], [0.0]]), 8, 8)[0]
    assert mask.sum() == 4  # 2 of 8 rows, 2 of 8 columns
    assert mask[:2, :2].all()


def test_cutmix_pastes_the_successor_and_changes_nothing_else() -> None:
    torch.manual_seed(0)
    images = numbered(500)
    result = cutmix(images)
    successor = images.roll(1, dims=0)
    assert ((result == images) | (result == successor)).all()
    # E[share pasted] = E[1 - lambda] less what is cut off at the borders: between a quarter and a half
    assert 0.25 < (result == successor).float().mean() < 0.5


def test_mixup_blends_each_image_with_its_successor_in_its_own_proportion() -> None:
    torch.manual_seed(0)
    images = torch.cat([torch.zeros(1000, 1, 2, 2), torch.ones(1000, 1, 2, 2)]).view(2, 1000, 1, 2, 2)
    pairs = images.transpose(0, 1).reshape(2000, 1, 2, 2)  # 0, 1, 0, 1, ...
    shares = mixup(pairs)[1::2, 0, 0, 0]  # of the ones, whose neighbours are zeros
    assert shares.mean().item() == pytest.approx(
        0.5, abs=0.03
    )  # uniform: mean 1/2, standard error 0.29 / sqrt(1000) = 0.009
    assert shares.std().item() == pytest.approx(12**-0.5, abs=0.02)


def test_the_share_of_batches_that_are_mixed_is_the_one_asked_for() -> None:
    torch.manual_seed(0)
    images = numbered(4)
    changed = sum(not torch.equal(mixed(images, "both", 0.3), images) for _ in range(1000))
    assert 250 < changed < 350  # 300, standard deviation sqrt(1000 * 0.3 * 0.7) = 14.5


@pytest.mark.parametrize(("mixing", "share"), [("none", 1.0), ("cutmix", 0.0)])
def test_nothing_is_mixed_where_nothing_was_asked_for(mixing: str, share: float) -> None:
    images = numbered(4)
    assert mixed(images, mixing, share) is images  # type: ignore[arg-type]
