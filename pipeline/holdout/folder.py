"""Pictures in a folder: in folders that are called as their classes, or without classes directly inside."""

import difflib
import struct
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.pipeline.errors import InputError, UsageError
from compress.pipeline.holdout.fit import MODES, Picture, fit_image, no_bombs, require_pillow
from compress.pipeline.records import InputSpec

FORMATS = ("BMP", "JPEG", "PNG", "WEBP")
"""No others: some of what Pillow can read it hands to other programs."""

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
KINDS = "Pictures are PNG, JPEG, BMP or WebP"


class PictureFolder:
    """The pictures of a folder, by name; each is read when its turn comes."""

    def __init__(self, root: Path, labels: Sequence[str], wanted: InputSpec) -> None:
        """Looks for the pictures, and opens none.

        Raises:
            UsageError: there are none, or a folder is called as no class is, or as several may be.
            InputError: the teacher takes neither grey nor RGB.
            MissingResourceError: Pillow is missing.
        """
        require_pillow()
        if wanted.channels not in MODES:
            raise InputError(
                f"The teacher takes images of {wanted.channels} channels, which pictures in files have not.",
                "Give --holdout an .npz with such images.",
            )
        self._root, self._wanted = root, wanted
        self._files, self.classes = _found(root, labels)

    def __len__(self) -> int:
        return len(self._files)

    def pictures(self) -> Iterator[Picture]:
        """Every picture.

        Raises:
            InputError: one cannot be read.
        """
        for path in self._files:
            yield _read(path, path.relative_to(self._root).as_posix(), self._wanted)


def _found(root: Path, labels: Sequence[str]) -> tuple[list[Path], NDArray[np.int64] | None]:
    """The pictures, and their classes where they are in folders."""
    called = _classes_by_folder(labels)
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not _passed_over(path, called)]
    loose = _pictures_in(root)
    if loose and folders:
        raise UsageError(
            f"{str(root)!r} holds pictures beside the folder {folders[0].name!r}.",
            "Put every picture into the folder of its class, or all of them into one folder without others.",
        )
    of_class = [(_class_of(folder.name, called, labels), _pictures_in(folder)) for folder in folders]
    files = loose + [path for _, pictures in of_class for path in pictures]
    if not files:
        raise UsageError(
            f"There are no pictures in {str(root)!r}.",
            f"{KINDS}, each in the folder of its class, such as {next(iter(called))}/1.png, or all directly inside.",
        )
    if loose:
        return files, None
    return files, np.repeat([number for number, _ in of_class], [len(pictures) for _, pictures in of_class])


def _passed_over(path: Path, called: Collection[str]) -> bool:
    """Hidden, unless the name is that of a class."""
    return path.name.startswith(".") and unicodedata.normalize("NFC", path.name) not in called


def _pictures_in(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".") and path.suffix.lower() in SUFFIXES and path.is_file()
    ]


def _classes_by_folder(labels: Sequence[str]) -> dict[str, list[int]]:
    """The names that folders may have, and the numbers of the classes that are called so; several cannot be told apart."""
    called: dict[str, list[int]] = {}
    for number, label in enumerate(labels):
        for name in _folder_names(label):
            called.setdefault(name, []).append(number)
    return called


def _folder_names(label: str) -> tuple[str, ...]:
    """What the folder of a class may be called: as the class, with `_` for what the names of folders cannot hold.

    Some file systems take letters and their accents apart, and some allow a backslash.
    """
    name = unicodedata.normalize("NFC", label).replace("/", "_")
    if name in (".", ".."):
        return ("_" * len(name),)
    return tuple(dict.fromkeys([name, name.replace("\\", "_")]))


def _class_of(folder: str, called: Mapping[str, Sequence[int]], labels: Sequence[str]) -> int:
    """The number of the class that a folder is called as."""
    name = unicodedata.normalize("NFC", folder)
    numbers = called.get(name, ())
    if len(numbers) == 1:
        return numbers[0]
    if numbers:
        raise UsageError(
            f"The folder {folder!r} may be that of the class {labels[numbers[0]]!r} or of {labels[numbers[1]]!r}.",
            "Give --holdout an .npz, which has the classes by their numbers.",
        )
    nearest = difflib.get_close_matches(name, called, n=1, cutoff=0.4)
    meant = f"the nearest is {nearest[0]!r}" if nearest else f"such as {next(iter(called))!r}"
    raise UsageError(
        f"The folder {folder!r} is called as none of the labels.",
        f"A folder of pictures has the name of its class as the labels file has it; {meant}.",
    )


def _read(path: Path, shown: str, wanted: InputSpec) -> Picture:
    from PIL import Image, ImageOps

    try:
        with no_bombs(), Image.open(path, formats=FORMATS) as image:
            if image.mode.startswith(("I", "F")):
                raise InputError(f"The picture {shown!r} has more than 8 bits a channel.", "Save it with 8 bits.")
            return fit_image(ImageOps.exif_transpose(image), wanted)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"The picture {shown!r} is absurdly large.", "Scale it down, or leave it out.") from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
    ) as error:  # whatever a damaged file makes Pillow say
        raise InputError(
            f"The picture {shown!r} cannot be read.", f"It is damaged, or of another kind: {KINDS}."
        ) from error
