"""Class names: read from a file, checked, and made fit for a sentence."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from compress.pipeline.errors import InputError, UsageError
from compress.pipeline.settings import Synonyms

MAX_FILE_BYTES = 10_000_000
MAX_NAME_CHARACTERS = 200

_ONE_NAME_A_LINE = "A labels file is UTF-8 text with one class name a line, in the order of the teacher's outputs."
# Characters that reorder the text around them: a report would show another name than the file holds.
_REORDERING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}

_NUMBERED = re.compile(r"(?P<number>\d{1,6})(?:\s*[.:,;)=-](?!\d)\s*|\s+)(?P<name>\S.*)")
_SYNSET = re.compile(r"n\d{8}[\s:,;_-]+(?P<name>\S.*)")
"""A noun's identifier in WordNet, as ImageNet's folders are called, with its names behind."""


def read_labels(path: Path) -> tuple[str, ...]:
    """The class names in a labels file, in the order of the teacher's outputs.

    A byte-order mark, Windows line ends, blanks around a name and empty lines at the end are tolerated.

    Raises:
        UsageError: the file cannot be read.
        InputError: the file is no list of distinct, printable names.
    """
    lines = [line.strip(" \t\r") for line in _decoded(_file_bytes(path), path).split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise InputError(f"The labels file {_shown(path)} is empty.", _ONE_NAME_A_LINE)
    for number, name in enumerate(lines, start=1):
        _check_name(name, number)
    _check_distinct(lines)
    return tuple(lines)


def check_label_count(labels: tuple[str, ...], num_classes: int) -> None:
    """Make sure that there is one name for each of the teacher's outputs.

    Raises:
        InputError: the numbers differ.
    """
    if len(labels) != num_classes:
        raise InputError(
            f"The teacher tells {num_classes} classes apart, but the labels file names {len(labels)}.", _ONE_NAME_A_LINE
        )


def label_text(label: str) -> str:
    """The name as words: `_` and `-` become spaces, runs of spaces become one."""
    return " ".join(label.replace("_", " ").replace("-", " ").split()) or label


def label_texts(labels: Sequence[str], synonyms: Synonyms = "fewest") -> tuple[str, ...]:
    """What of each class name is embedded: words alone, and of several synonyms as few as tell the classes apart, or all.

    Numbers in front are left out where they only count the lines, and identifiers of WordNet where names follow. What
    stands behind a comma is taken for a synonym where most lines have a comma, or where identifiers show that the names
    are WordNet's; in a few names of many it belongs to the name, as in `crane, bird`.
    """
    lines = _without_numbers(labels)
    names = [_SYNSET.sub(r"\g<name>", line) for line in lines]
    of_wordnet = any(name != line for name, line in zip(names, lines, strict=True))
    several = of_wordnet or 2 * sum("," in name for name in names) > len(names)
    if several and synonyms == "fewest":
        names = _told_apart([_synonyms(name) for name in names])
    return tuple(label_text(name) for name in names)


def _without_numbers(labels: Sequence[str]) -> list[str]:
    """The names behind line numbers, counted from 0 or 1, or the labels as they are where the numbers mean something."""
    matches = [match for label in labels if (match := _NUMBERED.fullmatch(label))]
    numbers, names = [int(match["number"]) for match in matches], [match["name"] for match in matches]
    counted = any(numbers == list(range(start, start + len(labels))) for start in (0, 1))
    return names if counted and len(set(names)) == len(names) > 1 else list(labels)


def _synonyms(name: str) -> list[str]:
    return [synonym for part in name.split(",") if (synonym := part.strip())] or [name]


def _told_apart(classes: Sequence[Sequence[str]]) -> list[str]:
    """The first synonym of each class, and where classes share it, further ones until they differ."""
    taken = [1] * len(classes)
    while True:
        texts = [", ".join(synonyms[:count]) for synonyms, count in zip(classes, taken, strict=True)]
        uses = Counter(texts)
        shared = [i for i, text in enumerate(texts) if uses[text] > 1 and taken[i] < len(classes[i])]
        if not shared:
            return texts
        for index in shared:
            taken[index] += 1


def _file_bytes(path: Path) -> bytes:
    try:
        if not path.exists():
            raise UsageError(f"There is no labels file {_shown(path)}.", _ONE_NAME_A_LINE)
        if not path.is_file():
            raise UsageError(f"{_shown(path)} is not a file.", _ONE_NAME_A_LINE)
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError(f"The labels file {_shown(path)} is absurdly large: {size:,} bytes.", _ONE_NAME_A_LINE)
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"The labels file {_shown(path)} cannot be read: {error.strerror}.") from error


def _decoded(content: bytes, path: Path) -> str:
    if b"\0" in content:
        raise InputError(f"The labels file {_shown(path)} is not text: it holds NUL bytes.", _ONE_NAME_A_LINE)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"The labels file {_shown(path)} is not UTF-8 text: line {line}.", _ONE_NAME_A_LINE) from error


def _check_name(name: str, number: int) -> None:
    if not name:
        raise InputError(f"Line {number} of the labels file is blank.", _ONE_NAME_A_LINE)
    if len(name) > MAX_NAME_CHARACTERS:
        raise InputError(
            f"The name on line {number} of the labels file has {len(name)} characters: {_shown(name)}.",
            f"A name may have up to {MAX_NAME_CHARACTERS} characters.",
        )
    if any(_is_control(character) for character in name):
        raise InputError(f"The name on line {number} of the labels file holds control characters: {_shown(name)}.")


def _check_distinct(names: list[str]) -> None:
    first_line: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if name in first_line:
            raise InputError(
                f"The labels file names {_shown(name)} twice, on lines {first_line[name]} and {number}.",
                "Two classes need two names, such as 'crane (bird)' and 'crane (machine)'.",
            )
        first_line[name] = number


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in {"Cc", "Zl", "Zp"} or unicodedata.bidirectional(character) in _REORDERING


def _shown(text: object) -> str:
    """Quoted, with unprintable characters escaped, and cut when long: safe on a terminal and in a log."""
    shown = str(text)
    return repr(shown if len(shown) <= 80 else shown[:77] + "...")
