"""One picture as the teacher takes it: its channels, its size."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compress.pipeline.errors import MissingResourceError
from compress.pipeline.records import InputSpec

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {1: "L", 3: "RGB"}
"""Pillow's name for 8 bits in so many channels."""

GREY_MODES = ("1", "L", "LA")
"""Those of Pillow's modes that hold grey alone; what is not a colour may also stand in one of the others."""


class Picture(NamedTuple):
    """Pixels as the teacher takes them, uint8 `[C, H, W]`, and what was done to them for that."""

    pixels: NDArray[np.uint8]
    scaled: bool
    recoloured: bool
    """Whether colours were made grey, or grey RGB."""


def require_pillow() -> None:
    """See that what reads and scales pictures is there before hours are spent.

    Raises:
        MissingResourceError: it is not.
    """
    if find_spec("PIL") is None:
        raise MissingResourceError(
            "Pillow is not installed, which reads and scales pictures.",
            "Install it with pip install 'compress-edge[holdout]', or give --holdout an .npz of images in the teacher's size.",
        )


def fit_image(image: "Image", wanted: InputSpec) -> Picture:
    """Grey or RGB as the teacher has it; what is of another shape is scaled, cut at the centre where it is longer."""
    from PIL import Image, ImageOps

    grey = image.mode in GREY_MODES
    if "transparency" in image.info:  # Pillow warns of going from a palette with transparent colours to RGB at once.
        image = image.convert("RGBA")
    recoloured = grey if wanted.channels == 3 else not grey and _has_colours(image)
    image = image.convert(MODES[wanted.channels])
    size = (wanted.width, wanted.height)
    scaled = image.size != size
    if scaled:  # Pillow's bilinear filter takes all pixels below an output pixel into account: no aliasing.
        image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    pixels = np.asarray(image).reshape(wanted.height, wanted.width, wanted.channels)
    return Picture(pixels.transpose(2, 0, 1), scaled, recoloured)


def _has_colours(image: "Image") -> bool:
    from PIL import ImageChops

    red, green, blue = image.convert("RGB").split()
    return any(ImageChops.difference(green, other).getbbox() for other in (red, blue))


def fit_pixels(pixels: NDArray[np.uint8], wanted: InputSpec) -> Picture:
    """The same of pixels `[C, H, W]`, which need no Pillow when they fit as they are."""
    if pixels.shape == (wanted.channels, wanted.height, wanted.width):
        return Picture(pixels, scaled=False, recoloured=False)
    from PIL import Image

    rows = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    return fit_image(Image.fromarray(rows), wanted)


@contextmanager
def no_bombs() -> Iterator[None]:
    """Let Pillow refuse pictures of absurdly many pixels instead of only warning of them."""
    import warnings

    from PIL.Image import DecompressionBombWarning

    with warnings.catch_warnings():
        warnings.simplefilter("error", DecompressionBombWarning)
        yield
