"""Real images, checked before anything else is done, and read again one batch at a time when they are needed."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.pipeline.errors import InputError, UsageError
from compress.pipeline.holdout.arrays import ImageArrays
from compress.pipeline.holdout.folder import PictureFolder
from compress.pipeline.records import InputSpec

BATCH = 64
"""Images that are in memory at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdout:
    """Images as the teacher takes them, and their true classes `[N]` where these are known."""

    name: str
    """Of the folder or file, without where it is."""
    source: PictureFolder | ImageArrays
    sha256: str
    """Of all pixels, as the teacher takes them, and of the classes."""
    notes: tuple[str, ...]
    """What was done to the images."""

    def __len__(self) -> int:
        return len(self.source)

    @property
    def classes(self) -> NDArray[np.int64] | None:
        return self.source.classes

    def batches(self) -> Iterator[NDArray[np.float32]]:
        """Images `[N, C, H, W]`, float32 in [0, 1].

        Raises:
            InputError: they are not what they were when they were opened, maybe hours ago.
        """
        digest = _digest_of_classes(self.classes)
        batch: list[NDArray[np.uint8]] = []
        for picture in self.source.pictures():
            digest.update(picture.pixels.tobytes())
            batch.append(picture.pixels)
            if len(batch) == BATCH:
                yield _as_float(batch)
                batch = []
        if batch:
            yield _as_float(batch)
        if digest.hexdigest() != self.sha256:
            raise InputError(
                f"The images in {self.name!r} were changed during the run.",
                "The same command measures them as they are.",
            )


def open_holdout(path: Path, labels: Sequence[str], wanted: InputSpec) -> Holdout:
    """See that every image can be read, and what all of them are.

    Args:
        path: a folder of class folders, a folder of pictures, or an `.npz`, see `arrays.py`.
        labels: class names in the order of the teacher's outputs.
        wanted: what the teacher takes.

    Raises:
        UsageError: there are no images, or a folder is called as no class is, or as several may be.
        InputError: an image cannot be read, or the file is no such archive.
        MissingResourceError: Pillow is needed and missing.
    """
    try:
        source = _source(path, labels, wanted)
        digest, scaled, recoloured = _digest_of_classes(source.classes), 0, 0
        for picture in source.pictures():
            digest.update(picture.pixels.tobytes())
            scaled += picture.scaled
            recoloured += picture.recoloured
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error
    colours = "in colour and were made grey" if wanted.channels == 1 else "grey and were made RGB"
    done = {f"scaled to {wanted.width} x {wanted.height} pixels": scaled, colours: recoloured}
    notes = tuple(f"{count:,} of {len(source):,} real images were {what}." for what, count in done.items() if count)
    return Holdout(name=path.resolve().name, source=source, sha256=digest.hexdigest(), notes=notes)


def _source(path: Path, labels: Sequence[str], wanted: InputSpec) -> PictureFolder | ImageArrays:
    if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises for a name that is too long
        raise UsageError(
            f"There are no real images in {str(path)!r}: there is no such folder or file.",
            "--holdout takes a folder with a folder of pictures for each class, or an .npz.",
        )
    return PictureFolder(path, labels, wanted) if path.is_dir() else ImageArrays(path, len(labels), wanted)


def _digest_of_classes(classes: NDArray[np.int64] | None) -> "hashlib._Hash":
    return hashlib.sha256(b"" if classes is None else classes.tobytes())


def _as_float(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    return np.stack(images).astype(np.float32) / np.float32(255)
