"""Held-out synthetic images: what the student is judged on, and never trained on.

They come from freshly initialised generators with seeds of their own, so that they share neither weights nor noise with
what fills the pool.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.exporters.bundle import write_file
from compress.pipeline.adequacy import half_way
from compress.pipeline.boundary import towards_boundary
from compress.pipeline.device import Compute, derived_seed
from compress.pipeline.parallel.world import ALONE
from compress.pipeline.settings import Settings
from compress.pipeline.synthesis.augment import Augmentation
from compress.pipeline.synthesis.pool import as_float
from compress.pipeline.synthesis.synthesiser import Synthesiser
from compress.pipeline.teacher import Teacher

VIEWS = {"synthesised": 1.0, "augmented": 0.5, "mixed": 0.5, "between": 0.25, "boundary": 0.25}
"""Of the synthesised images, how many are shown in which way; that makes 40, 20, 20, 10 and 10 % of the probes. As they are,
images flatter a student, those between classes are harder than real ones; with these shares the agreement of good students
came nearest to that on real images, see `benchmarks/README.md`."""

KINDS = tuple(VIEWS)
VIEWS_OF_AN_IMAGE = sum(VIEWS.values())

IMAGES_A_CLASS = 5
"""Synthesised at least, on average; with fewer, a class that the teacher recognises half of its images of could go unseen."""

AT_ONCE = 256
"""Views that are floats at the same time."""


class Probes(NamedTuple):
    """Images uint8 `[N, C, H, W]`, what the teacher says `[N, K]`, the classes asked for `[N]`, the kind `[N]`, and the numbers
    `[N]` of the synthesised image that each is a view of, and of the generator that made it; and how many images each generator
    made `[G]`, with those that the teacher did not recognise."""

    images: NDArray[np.uint8]
    teacher_logits: NDArray[np.float32]
    targets: NDArray[np.int64]
    kind: NDArray[np.str_]
    origin: NDArray[np.int64]
    generator: NDArray[np.int64]
    made: NDArray[np.int64]

    @property
    def made_for_a_class(self) -> NDArray[np.bool_]:
        """Those `[N]` that are shown as they were synthesised, each to show one class."""
        return np.asarray(self.kind == KINDS[0])

    @property
    def unrecognised(self) -> int:
        """Images that were left out."""
        return int(self.made.sum() - self.made_for_a_class.sum())

    def save(self, path: Path) -> None:
        """Write as `npz`, with time stamps that depend on nothing."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **self._asdict())
        write_file(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Probes":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(*(arrays[name] for name in cls._fields))


def held_out_images(
    teacher: Teacher,
    embeddings: Tensor,
    settings: Settings,
    compute: Compute,
    *,
    purpose: str,
    batches: int,
    generators: int,
    on_batch: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Images uint8 `[N, C, H, W]`, their classes `[N]` and generators `[N]`, synthesised apart from all training.

    With more classes than a batch has images, the batches share the classes out between them. `on_batch` is called after
    each batch, also those that are thrown away. Each of several processes makes all of them, as one alone would: what a
    student is judged by must not depend on how many trained it.
    """
    compute = replace(compute, world=ALONE)
    batch_size, num_classes = settings.synthesis.batch_size, len(embeddings)
    torch.manual_seed(derived_seed(settings.seed, purpose, "classes"))
    dealt = class_sequence(batches * batch_size, num_classes).split(batch_size) if num_classes > batch_size else None
    made: list[tuple[Tensor, Tensor]] = []
    shares = _shares(batches, generators)
    for number, share in enumerate(shares):
        torch.manual_seed(derived_seed(settings.seed, purpose, number))
        synthesiser = Synthesiser(teacher, embeddings, settings.synthesis, compute)
        for _ in range(settings.probes.warmup_batches):
            synthesiser.make()
            on_batch()
        for _ in range(share):
            made.append(synthesiser.make(targets=dealt[len(made)] if dealt else None)[:2])
            on_batch()
    by = torch.arange(len(shares)).repeat_interleave(torch.tensor(shares) * batch_size)
    return torch.cat([images for images, _ in made]), torch.cat([targets for _, targets in made]), by


def make_probes(
    teacher: Teacher,
    embeddings: Tensor,
    settings: Settings,
    compute: Compute,
    on_batch: Callable[[], None] = lambda: None,
    *,
    purpose: str = "probes",
) -> Probes:
    """The probes of the verdict: images as synthesised; shifted and mirrored; mixed in pairs, some so far that the teacher is
    hardly sure; and moved towards a boundary between classes. An image is shown in several of these ways.

    Images that the teacher does not take for the class they were made for are left out, see `recognised`: they show nothing
    in particular, unlike what a teacher meets. Of one for digits they were a third; its students agreed on 86 % of them, on
    99 % of the others and on 99 % of real digits. Another `purpose` gives other probes.
    """
    images, targets, generator = held_out_images(
        teacher,
        embeddings,
        settings,
        compute,
        purpose=purpose,
        batches=settings.probes.batches,
        generators=settings.probes.generators,
        on_batch=on_batch,
    )
    made = torch.bincount(generator)
    known = recognised(teacher, images, targets.to(images.device))
    images, targets, generator = images[known], targets.cpu()[known.cpu()], generator[known.cpu()]
    torch.manual_seed(derived_seed(settings.seed, purpose, "kinds"))
    augment = Augmentation.for_input(teacher.record.input, settings.synthesis)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "synthesised": lambda shown: shown,
        "augmented": lambda shown: augment(shown),
        "mixed": lambda shown: mix(shown, 0.6, 0.8),
        "between": lambda shown: mix(shown, 0.5, 0.65),
        "boundary": lambda shown: towards_boundary(teacher, shown, settings.synthesis.batch_size),
    }
    origin = {kind: torch.randperm(len(images))[: math.ceil(share * len(images))] for kind, share in VIEWS.items()}
    origin[KINDS[0]] = torch.arange(len(images))
    shown = {kind: _views(images[origin[kind].to(images.device)], way) for kind, way in ways.items()}
    # Shuffled, so that the first few are of all kinds.
    order = torch.randperm(sum(map(len, shown.values())))
    final = torch.cat(list(shown.values()))[order.to(images.device)]
    origins = torch.cat([origin[kind] for kind in shown])[order]
    return Probes(
        images=final.cpu().contiguous().numpy(),
        teacher_logits=teacher_logits(teacher, final).cpu().numpy(),
        targets=targets[origins].numpy(),
        kind=np.repeat(KINDS, [len(views) for views in shown.values()])[order.numpy()],
        origin=origins.numpy(),
        generator=generator[origins].numpy(),
        made=made.numpy(),
    )


def recognised(teacher: Teacher, images: Tensor, targets: Tensor) -> Tensor:
    """Which images `[N]` the teacher takes for the class `[N]` they were made for.

    All, where their share is less than half way between a guess and certainty: such a generator has hardly learned, and all
    that it makes together is the harder test.
    """
    logits = teacher_logits(teacher, images)
    known = logits.argmax(1) == targets
    return known if known.float().mean() >= half_way(logits.shape[1]) else torch.ones_like(known)


def _views(images: Tensor, way: Callable[[Tensor], Tensor]) -> Tensor:
    """Images uint8 `[N, C, H, W]`, shown in some way."""
    return torch.cat([(way(as_float(part)) * 255).round().to(torch.uint8) for part in images.split(AT_ONCE)])


def with_more(
    probes: Probes,
    least: int,
    teacher: Teacher,
    embeddings: Tensor,
    settings: Settings,
    compute: Compute,
    on_batch: Callable[[], None] = lambda: None,
) -> Probes:
    """The probes with as many more as it takes to have `least` of them; those that are there stay as they are."""
    attempt = 0
    while (batches := _batches(least - len(probes.images), settings, views_of(probes))) > 0:
        asked = settings.model_copy(update={"probes": settings.probes.model_copy(update={"batches": batches})})
        more = make_probes(teacher, embeddings, asked, compute, on_batch, purpose=f"more probes {attempt}")
        behind = {
            "origin": more.origin + 1 + probes.origin.max(initial=-1),
            "generator": more.generator + len(probes.made),
        }
        parts = probes._asdict(), more._asdict() | behind
        probes = Probes(**{name: np.concatenate([part[name] for part in parts]) for name in Probes._fields})
        attempt += 1
    return probes


def batches_for(probes: int, settings: Settings, views: float = VIEWS_OF_AN_IMAGE) -> int:
    """How many batches, those of new generators' warm-up among them, make so many probes, if an image has so many `views`."""
    batches = _batches(probes, settings, views)
    return batches + min(batches, settings.probes.generators) * settings.probes.warmup_batches


def _batches(probes: int, settings: Settings, views: float) -> int:
    return math.ceil(probes / (views * settings.synthesis.batch_size))


def views_of(probes: Probes) -> float:
    """Of an image that was made, those that were left out counted in."""
    return len(probes.images) / int(probes.made.sum()) if len(probes.images) else VIEWS_OF_AN_IMAGE


def with_enough_probes(settings: Settings, num_classes: int) -> Settings:
    """The settings with batches enough for `IMAGES_A_CLASS` images of each class, since the verdict must see them all."""
    least = math.ceil(IMAGES_A_CLASS * num_classes / settings.synthesis.batch_size)
    probes = settings.probes.model_copy(update={"batches": max(settings.probes.batches, least)})
    return settings.model_copy(update={"probes": probes})


def class_sequence(count: int, num_classes: int) -> Tensor:
    """Classes `[count]`: shuffled runs of all classes, one after the other, so that none comes twice before all came."""
    return torch.cat([torch.randperm(num_classes) for _ in range(-(-count // num_classes))])[:count]


def mix(images: Tensor, least: float, most: float) -> Tensor:
    """Each image `[N, C, H, W]` blended with its successor; of it, a share between `least` and `most` is left."""
    share = (least + (most - least) * torch.rand(len(images), 1, 1, 1)).to(images.device)
    return share * images + (1 - share) * images.roll(1, dims=0)


@torch.no_grad()
def teacher_logits(teacher: Teacher, images: Tensor, batch_size: int = 256) -> Tensor:
    """The teacher's logits `[N, K]` in float32 for uint8 images `[N, C, H, W]`."""
    return torch.cat([teacher.logits(as_float(batch)) for batch in torch.split(images, batch_size)])


def _shares(batches: int, generators: int) -> Sequence[int]:
    """`batches` dealt out to at most `generators`: `_shares(5, 2) = [3, 2]`."""
    generators = min(batches, generators)
    return [batches // generators + (number < batches % generators) for number in range(generators)]
