import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.pipeline import probes as module
from compress.pipeline.boundary import towards_boundary
from compress.pipeline.probes import (
    KINDS,
    Probes,
    batches_for,
    class_sequence,
    held_out_images,
    make_probes,
    mix,
    recognised,
    teacher_logits,
    with_enough_probes,
    with_more,
)
from compress.pipeline.settings import Settings
from compress.pipeline.synthesis.synthesiser import Synthesiser
from tests.synthesis.test_augment import every_view, matches
from tests.tiny import CPU, tiny_embeddings, tiny_settings, tiny_teacher


def settings(**probes: Any) -> Settings:
    usual = {"batches": 2, "generators": 1, "warmup_batches": 1, "monitor_batches": 1}
    return tiny_settings(synthesis={"batch_size": 20, "steps": 2}, probes=usual | probes)


def held_out(purpose: str = "probes", *, batches: int = 2, generators: int = 1, **probes: Any) -> torch.Tensor:
    images, targets, _ = held_out_images(
        tiny_teacher(),
        tiny_embeddings(),
        settings(**probes),
        CPU,
        purpose=purpose,
        batches=batches,
        generators=generators,
    )
    assert targets.tolist() == [0, 1, 2, 3] * (len(images) // 4)
    return images


@pytest.fixture(scope="module", autouse=True)
def all_images() -> Iterator[None]:
    """An untrained teacher recognises some images by chance; but for the tests that are about it, none is left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "recognised", lambda teacher, images, targets: torch.ones_like(targets, dtype=torch.bool))
        yield


@pytest.fixture(scope="module")
def made(all_images: None) -> Probes:
    return make_probes(tiny_teacher(), tiny_embeddings(), settings(), CPU)


# Held-out images


def test_held_out_images_depend_on_seed_and_purpose_alone() -> None:
    torch.manual_seed(1)
    once = held_out()
    torch.manual_seed(2)
    assert torch.equal(held_out(), once)
    monitor = held_out("monitor")
    assert once.shape == monitor.shape == (40, 3, 8, 8)
    assert not {image.numpy().tobytes() for image in once} & {image.numpy().tobytes() for image in monitor}


def test_another_seed_makes_other_images() -> None:
    other = tiny_settings(seed=1, synthesis={"batch_size": 20, "steps": 2}, probes={"warmup_batches": 1})
    images, *_ = held_out_images(
        tiny_teacher(), tiny_embeddings(), other, CPU, purpose="probes", batches=2, generators=1
    )
    assert not torch.equal(images, held_out())


def test_the_first_batches_of_a_generator_are_thrown_away() -> None:
    assert torch.equal(held_out(batches=3, warmup_batches=0)[40:], held_out(batches=1, warmup_batches=2))


@pytest.mark.parametrize(
    ("batches", "generators", "shares"), [(5, 2, [3, 2]), (4, 4, [1, 1, 1, 1]), (2, 3, [1, 1]), (3, 1, [3])]
)
def test_generators_share_the_batches(
    monkeypatch: pytest.MonkeyPatch, batches: int, generators: int, shares: list[int]
) -> None:
    batches_of: list[int] = []

    class Counted(Synthesiser):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            batches_of.append(0)

        def make(self, student: torch.nn.Module | None = None, targets: torch.Tensor | None = None) -> Any:
            assert student is None
            batches_of[-1] += 1
            return super().make(targets=targets)

    monkeypatch.setattr(module, "Synthesiser", Counted)
    images = held_out(batches=batches, generators=generators, warmup_batches=2)
    assert batches_of == [share + 2 for share in shares]
    assert len({image.numpy().tobytes() for image in images}) == 20 * batches


def test_logits_are_the_teachers_in_batches_of_any_size() -> None:
    images = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8)
    logits = teacher_logits(tiny_teacher(), images, batch_size=4)
    torch.testing.assert_close(logits, tiny_teacher().logits(images / 255))
    assert logits.shape == (10, 4) and logits.dtype == torch.float32 and not logits.requires_grad


# Mixing


def test_mixing_blends_each_image_with_its_successor() -> None:
    images = torch.rand(50, 3, 4, 4)
    mixed, others = mix(images, 0.6, 0.8), images.roll(1, dims=0)
    share = ((mixed - others) / (images - others)).flatten(1).median(dim=1).values
    torch.testing.assert_close(mixed, share.view(-1, 1, 1, 1) * images + (1 - share.view(-1, 1, 1, 1)) * others)
    assert 0.6 - 1e-4 <= share.min() < 0.63
    assert 0.77 < share.max() <= 0.8 + 1e-4


def test_a_mixture_lies_between_its_two_images() -> None:
    images = torch.rand(20, 3, 4, 4)
    mixed, others = mix(images, 0.6, 0.8), images.roll(1, dims=0)
    assert (mixed >= torch.minimum(images, others) - 1e-6).all()
    assert (mixed <= torch.maximum(images, others) + 1e-6).all()


def test_one_image_alone_mixes_with_itself() -> None:
    image = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(mix(image, 0.6, 0.8), image)


# Probes


def test_the_kinds_have_their_shares(made: Probes) -> None:
    assert KINDS == ("synthesised", "augmented", "mixed", "between", "boundary")
    # All of 40 images, half, half, a quarter and a quarter of them: 40, 20, 20, 10 and 10 % of 100 probes.
    assert [int((made.kind == kind).sum()) for kind in KINDS] == [40, 20, 20, 10, 10]
    assert len(set(made.kind[:15].tolist())) > 2  # the first few are not of one kind


def test_each_kind_is_what_it_says(made: Probes) -> None:
    images = held_out().numpy()
    before = images[made.origin]
    same = (made.images == before).all(axis=(1, 2, 3))
    assert same[made.made_for_a_class].all()
    assert sorted(made.origin[made.made_for_a_class]) == list(range(40))
    assert not same[np.isin(made.kind, ["mixed", "between", "boundary"])].any()
    augmented = made.kind == "augmented"
    for image, view in zip(before[augmented], made.images[augmented], strict=True):
        views = every_view(torch.from_numpy(image).float(), padding=1, flip=True)
        assert matches(torch.from_numpy(view).float(), views)
    for kind in ("mixed", "between"):
        for image, view in zip(before[made.kind == kind], made.images[made.kind == kind], strict=True):
            inside = (np.minimum(image, images) <= view) & (view <= np.maximum(image, images))
            assert inside.all(axis=(1, 2, 3)).any()  # between its own image and another one
    boundary = made.kind == "boundary"
    moved = towards_boundary(tiny_teacher(), torch.from_numpy(before[boundary]) / 255)
    assert np.array_equal((moved * 255).round().to(torch.uint8).numpy(), made.images[boundary])


def test_probes_tell_the_generator_that_made_them() -> None:
    made = make_probes(tiny_teacher(), tiny_embeddings(), settings(batches=3, generators=2), CPU)
    assert np.array_equal(made.generator, (made.origin >= 40).astype(int))  # two batches of 20, and one


def named_but(share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Images `[40, 3, 8, 8]`, and their classes by the teacher but for that share of them, which have another."""
    images = held_out()
    named = tiny_teacher().logits(images / 255).argmax(1)
    return images, torch.where(torch.arange(40) < round(40 * share), (named + 1) % 4, named)


def test_images_that_the_teacher_does_not_recognise_are_told_where_most_are_recognised() -> None:
    # (1 + 1/4) / 2 = 62.5 %, 25 of 40
    images, targets = named_but(15 / 40)
    assert recognised(tiny_teacher(), images, targets).tolist() == [False] * 15 + [True] * 25
    images, targets = named_but(16 / 40)
    assert recognised(tiny_teacher(), images, targets).all()


def test_images_that_the_teacher_does_not_recognise_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "recognised", lambda teacher, images, targets: torch.arange(40) % 5 > 0)
    made = make_probes(tiny_teacher(), tiny_embeddings(), settings(), CPU)
    shown, left = made.made_for_a_class, np.arange(40) % 5 > 0
    assert np.array_equal(made.images[shown][np.argsort(made.origin[shown])], held_out().numpy()[left])
    assert sorted(made.targets[shown]) == sorted(np.arange(40)[left] % 4)
    assert (made.made.tolist(), made.unrecognised) == ([40], 8)
    assert [int((made.kind == kind).sum()) for kind in KINDS] == [32, 16, 16, 8, 8]


def test_more_probes_are_made_until_there_are_enough_although_some_images_are_left_out(
    made: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(teacher: Any, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.arange(len(images)) % 2 > 0

    monkeypatch.setattr(module, "recognised", half)
    more = with_more(made, 200, tiny_teacher(), tiny_embeddings(), settings(), CPU)
    # 100 are there; two batches, the half of 40 images, bring 50, and then two more are needed at 1.875 views an image.
    assert (len(more.images), more.made.tolist(), more.unrecognised) == (200, [40, 40, 40], 40)


def test_each_way_shows_an_image_once_at_most(made: Probes) -> None:
    for kind in KINDS:
        origin = made.origin[made.kind == kind]
        assert len(set(origin.tolist())) == len(origin)


def test_more_probes_leave_those_that_are_there_as_they_are_and_repeat_none(made: Probes) -> None:
    more = with_more(made, 110, tiny_teacher(), tiny_embeddings(), settings(), CPU)
    assert len(more.images) == 150  # in whole batches of 20 images, 50 views
    for name in Probes._fields:
        assert np.array_equal(getattr(more, name)[: len(getattr(made, name))], getattr(made, name)), name
    assert set(more.origin[100:].tolist()) == set(range(40, 60))  # views of other images
    assert set(more.generator[100:].tolist()) == {1}  # made by another generator
    assert len({image.tobytes() for image in more.images[more.made_for_a_class]}) == 60
    logits = tiny_teacher().logits(torch.from_numpy(more.images) / 255)
    torch.testing.assert_close(torch.from_numpy(more.teacher_logits), logits)


def test_enough_probes_get_no_more(made: Probes) -> None:
    assert with_more(made, 100, tiny_teacher(), tiny_embeddings(), settings(), CPU) is made


@pytest.mark.parametrize(("probes", "batches"), [(1, 2), (50, 2), (51, 3), (250, 6)])
def test_batches_are_counted_with_those_that_warm_a_generator_up(made: Probes, probes: int, batches: int) -> None:
    heard: list[None] = []
    assert batches_for(probes, settings()) == batches  # ceil(probes / 50), and one of warm-up
    nothing = Probes(**{name: array[:0] for name, array in made._asdict().items()})
    with_more(nothing, probes, tiny_teacher(), tiny_embeddings(), settings(), CPU, lambda: heard.append(None))
    assert len(heard) == batches


def test_probes_carry_the_teachers_answers_to_their_final_bytes(made: Probes) -> None:
    images = torch.from_numpy(made.images) / 255
    torch.testing.assert_close(torch.from_numpy(made.teacher_logits), tiny_teacher().logits(images))
    assert made.targets.tolist() == (made.origin % 4).tolist()  # classes in turns


def test_probes_are_the_same_whatever_was_drawn_before(made: Probes) -> None:
    torch.manual_seed(99)
    again = make_probes(tiny_teacher(), tiny_embeddings(), settings(), CPU)
    for name in Probes._fields:
        assert np.array_equal(getattr(made, name), getattr(again, name)), name


def test_two_probes_are_enough_to_make_some() -> None:
    few = tiny_settings(synthesis={"batch_size": 2, "steps": 1}, probes={"batches": 1, "warmup_batches": 0})
    made = make_probes(tiny_teacher(), tiny_embeddings(), few, CPU)
    # both as they are, one and one of the first two ways, a half of an image and so one of the others
    assert made.images.shape == (6, 3, 8, 8)
    assert set(made.kind.tolist()) <= set(KINDS)


def test_grey_probes_keep_their_one_channel() -> None:
    made = make_probes(tiny_teacher(channels=1), tiny_embeddings(), settings(), CPU)
    assert made.images.shape == (100, 1, 8, 8)


# Their file


def test_probes_come_back_from_their_file(made: Probes, tmp_path: Path) -> None:
    made.save(tmp_path / "probes.npz")
    again = Probes.load(tmp_path / "probes.npz")
    for name in Probes._fields:
        one, other = getattr(made, name), getattr(again, name)
        assert np.array_equal(one, other), name
        assert one.dtype == other.dtype
    assert [path.name for path in tmp_path.iterdir()] == ["probes.npz"]


def test_the_file_does_not_depend_on_the_time(made: Probes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.save(tmp_path / "now.npz")
    monkeypatch.setattr(time, "time", lambda: 4e8)  # in 1982
    monkeypatch.setattr(time, "localtime", lambda _=None: time.gmtime(4e8))
    made.save(tmp_path / "then.npz")
    assert (tmp_path / "then.npz").read_bytes() == (tmp_path / "now.npz").read_bytes()


def test_a_file_that_would_run_code_when_read_is_refused(made: Probes, tmp_path: Path) -> None:
    objects = made._asdict() | {"kind": made.kind.astype(object)}
    np.savez(tmp_path / "probes.npz", **objects)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        Probes.load(tmp_path / "probes.npz")


# Many classes


def test_a_sequence_of_classes_repeats_none_before_all_came() -> None:
    sequence = class_sequence(10, 4).tolist()
    assert sorted(sequence[:4]) == sorted(sequence[4:8]) == [0, 1, 2, 3]
    assert len(set(sequence[8:])) == 2


def test_batches_smaller_than_the_classes_share_them_out() -> None:
    few = tiny_settings(synthesis={"batch_size": 3, "steps": 1}, probes={"batches": 4, "warmup_batches": 0})
    made = make_probes(tiny_teacher(), tiny_embeddings(), few, CPU)
    assert np.bincount(made.targets[made.made_for_a_class], minlength=4).tolist() == [3, 3, 3, 3]


def test_there_are_five_images_a_class_at_least() -> None:
    usual = tiny_settings(synthesis={"batch_size": 100}, probes={"batches": 6})
    assert with_enough_probes(usual, 100).probes.batches == 6
    assert with_enough_probes(usual, 1000).probes.batches == 50  # 5 * 1000 / 100
