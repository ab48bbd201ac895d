"""Pictures of synthetic images, written as PNG without an image library."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GAP = 2
"""Transparent pixels between two images."""

PROBES_SHOWN = 10
"""Probes of each kind that the report shows."""

PROBE_PIXELS = 64
"""Width in the report that small images are enlarged to."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def probe_samples(images: NDArray[np.uint8], kinds: NDArray[np.str_]) -> bytes:
    """A PNG of the first probes `[N, C, H, W]` of each of their kinds `[N]`, a row for each, in the kinds' order.

    Raises:
        ValueError: there is no probe.
    """
    rows = [images[kinds == kind][:PROBES_SHOWN] for kind in np.unique(kinds)]
    return class_grid(rows, PROBES_SHOWN, scale=max(1, PROBE_PIXELS // images.shape[-1]))


def class_grid(rows: Sequence[NDArray[np.uint8]], columns: int, scale: int = 2) -> bytes:
    """A PNG with a row for each of `rows`, images `[n, C, H, W]` of one size; a row of less than `columns` images ends in
    transparent pixels.

    Each pixel is drawn as `scale` by `scale` pixels. Three channels are red, green and blue; of any other number the first is
    shown as grey.

    Raises:
        ValueError: there is no row.
    """
    if not rows:
        raise ValueError("a grid needs at least one row")
    lines = [np.pad(_opaque(row, scale), ((0, columns - len(row)), (0, GAP), (0, GAP), (0, 0))) for row in rows]
    return encode_png(np.concatenate([np.concatenate(list(line), axis=1) for line in lines])[:-GAP, :-GAP])


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of `pixels` `[H, W, 4]`: red, green, blue and opacity, 0 to 255.

    Source: W3C, Portable Network Graphics (PNG) Specification, sections 5 (chunks), 9.2 (filter type 0) and 11.2.
    """
    height, width, _ = pixels.shape
    # Width, height, 8 bits a sample, colour type 6 (RGB with alpha), then the only compression, filter and interlace.
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    # Every line of pixels starts with its filter type: 0, none.
    lines = np.pad(pixels.reshape(height, width * 4), ((0, 0), (1, 0)))
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)


def _opaque(images: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Images `[N, C, H, W]` to enlarged pixels `[N, H * scale, W * scale, 4]`."""
    colour = images if images.shape[1] == 3 else np.repeat(images[:, :1], 3, axis=1)
    pixels = np.concatenate([colour, np.full_like(colour[:, :1], 255)], axis=1).transpose(0, 2, 3, 1)
    return pixels.repeat(scale, axis=1).repeat(scale, axis=2)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
