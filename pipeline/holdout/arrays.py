"""Images in an `.npz`: `images`, uint8 `[N, H, W, C]` or `[N, C, H, W]`, and their classes in `labels` `[N]`, if known.

The images are read from the archive one after the other: they may be more than the memory holds.
"""

import lzma
import math
import tokenize
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from compress.pipeline.errors import InputError, UsageError
from compress.pipeline.holdout.fit import MODES, Picture, fit_pixels, require_pillow
from compress.pipeline.records import InputSpec

HINT = (
    "An .npz holds 'images', uint8 [N, H, W, C] or [N, C, H, W], and 'labels', whole numbers [N] from 0 on, if they are "
    "known: numpy.savez('holdout.npz', images=images, labels=labels)."
)
LARGEST_IMAGE = 2**28
"""Bytes of one image; more than any camera has."""

MOST_IMAGES = 10**7
"""A header may claim anything; the classes of so many still fit into memory."""

DAMAGE = (
    *(BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError),
    *(ValueError, TypeError, EOFError, KeyError, NotImplementedError, RuntimeError),
)
"""What a damaged archive, or the header of an array in it, may be met with."""

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class Header(NamedTuple):
    """What an array's own file in the archive says about it."""

    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype[np.generic]


class ImageArrays:
    """The images of an archive."""

    def __init__(self, path: Path, num_classes: int, wanted: InputSpec) -> None:
        """Reads the classes, and of the images what they look like.

        Raises:
            UsageError: there are no images.
            InputError: the archive is no such archive.
            MissingResourceError: the images do not fit as they are, and Pillow is missing.
        """
        self._path, self._wanted = path, wanted
        with _told(path), ZipFile(path) as archive:
            names = archive.namelist()
            if "images.npy" not in names:
                raise InputError(f"There are no 'images' in {str(path)!r}.", HINT)
            with archive.open("images.npy") as stream:
                self._header = _checked_images(stream, path)
            self.classes = _classes(archive, path, len(self), num_classes) if "labels.npy" in names else None
        self._channels_last = _channels_last(self._header.shape, wanted, path)
        fitting = (wanted.height, wanted.width, wanted.channels) if self._channels_last else _as_taken(wanted)
        if self._header.shape[1:] != fitting:
            require_pillow()

    def __len__(self) -> int:
        return self._header.shape[0]

    def pictures(self) -> Iterator[Picture]:
        """Every image.

        Raises:
            InputError: the archive is damaged.
        """
        shape = self._header.shape[1:]
        with _told(self._path), ZipFile(self._path) as archive, archive.open("images.npy") as stream:
            _header(stream)
            for _ in range(len(self)):
                image = np.frombuffer(_exactly(stream, math.prod(shape)), np.uint8).reshape(shape)
                yield fit_pixels(self._as_channels_first(image), self._wanted)

    def _as_channels_first(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return image.transpose(2, 0, 1) if self._channels_last else image


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """A damaged archive becomes an error that names it."""
    try:
        yield
    except DAMAGE as error:
        raise InputError(f"{str(path)!r} is no .npz that can be read.", HINT) from error
    except OSError as error:  # it was there when the run began
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror or error}.", HINT) from error


def _header(stream: IO[bytes]) -> Header:
    return Header(*HEADERS[npy.read_magic(stream)](stream))


def _exactly(stream: IO[bytes], count: int) -> bytes:
    content = stream.read(count)
    if len(content) != count:
        raise EOFError
    return content


def _checked_images(stream: IO[bytes], path: Path) -> Header:
    header = _header(stream)
    readable = header.dtype == np.uint8 and len(header.shape) == 4 and not header.by_columns
    if not readable or not 0 < math.prod(header.shape[1:]) <= LARGEST_IMAGE:
        told = f"{header.dtype} {list(header.shape)}" + (" by columns" if header.by_columns else "")
        raise InputError(f"The 'images' in {str(path)!r} are {told}.", HINT)
    if header.shape[0] > MOST_IMAGES:
        raise InputError(f"{str(path)!r} claims to hold {header.shape[0]:,} images.", HINT)
    if not header.shape[0]:
        raise UsageError(f"There are no images in {str(path)!r}.", HINT)
    return header


def _classes(archive: ZipFile, path: Path, count: int, num_classes: int) -> NDArray[np.int64]:
    with archive.open("labels.npy") as stream:
        header = _header(stream)
        if header.dtype.kind not in "iu" or header.shape != (count,):
            told = f"{header.dtype} {list(header.shape)} for {count:,} images"
            raise InputError(f"The 'labels' in {str(path)!r} are {told}.", HINT)
        classes = np.frombuffer(_exactly(stream, count * header.dtype.itemsize), header.dtype)
    if classes.min() < 0 or classes.max() >= num_classes:
        wrong = classes.max() if classes.max() >= num_classes else classes.min()
        raise InputError(
            f"The 'labels' in {str(path)!r} name class {wrong}, but classes run from 0 to {num_classes - 1}.", HINT
        )
    return classes.astype(np.int64)


def _as_taken(wanted: InputSpec) -> tuple[int, ...]:
    return wanted.channels, wanted.height, wanted.width


def _channels_last(shape: tuple[int, ...], wanted: InputSpec, path: Path) -> bool:
    """Whether images are `[H, W, C]`; such as the teacher takes are `[C, H, W]`, whatever else they might be."""
    convertible = MODES if wanted.channels in MODES else ()
    if shape[1:] == _as_taken(wanted):
        return False
    if shape[3] in convertible or shape[1:] == (wanted.height, wanted.width, wanted.channels):
        return True
    if shape[1] in convertible:
        return False
    raise InputError(
        f"The 'images' in {str(path)!r} are {list(shape)}, and the teacher takes "
        f"{wanted.channels} x {wanted.height} x {wanted.width}.",
        HINT,
    )
