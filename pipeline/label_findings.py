"""What may be wrong with class names, whose meaning is all that the images of a class are generated from."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from compress.pipeline.records import Finding
from compress.pipeline.teacher.readers.formats import printable

TOPIC = "class names"

SAME_TEXT = 0.999
"""Cosine above which two names give the generator nothing to tell their images apart by."""

NEARLY_SAME = 0.95
"""Cosine above which they give it little. The default encoder puts `cat` and `cats` at 0.97, `car` and `automobile` at
0.94, `truck` and `automobile` at 0.76, and of CIFAR-100's names no two above 0.76."""

MOST_LISTED = 5

ALPHABET = 20
"""Names of one character each that, from this number on, are the names of characters."""

_NUMBER = re.compile(
    r"(?:class|cls|label|category|target|object|type|idx|id|index|item|group|folder)[\s#]*\d+|\d{2,}|n\d{8}",
    re.IGNORECASE,
)
_HEXADECIMAL = re.compile(r"(?=.*\d)(?=.*[a-f])[0-9a-f]{6,}|[0-9a-f]{8}(?: [0-9a-f]{4}){3} [0-9a-f]{12}", re.IGNORECASE)
_LETTER = re.compile(r"[a-z]", re.IGNORECASE)


def name_findings(labels: Sequence[str], texts: Sequence[str], embeddings: NDArray[np.float32]) -> tuple[Finding, ...]:
    """Names that mean the same to the encoder, nearly the same, or nothing; a note where there are none.

    Args:
        labels: the class names as the user gave them.
        texts: the words of each that were embedded.
        embeddings: unit vectors `[num_classes, dimension]`.
    """
    pairs = closest_pairs(labels, embeddings)
    found = (*_alike(pairs), *_meaningless(labels, texts))
    return found if found or not pairs else (_unlike(pairs[0], len(labels)),)


def closest_pairs(labels: Sequence[str], embeddings: NDArray[np.float32]) -> list[tuple[str, str, float]]:
    """Each label but the last with the one after it that is most alike, and their cosine; the closest pair first."""
    pairs = []
    for row in range(len(labels) - 1):
        cosines = embeddings[row + 1 :] @ embeddings[row]
        nearest = int(cosines.argmax())
        pairs.append((labels[row], labels[row + 1 + nearest], float(cosines[nearest])))
    return sorted(pairs, key=lambda pair: -pair[2])


def carried_finding(labels: Sequence[str], carried: Sequence[str]) -> Iterator[Finding]:
    """Whether the labels are, in their order, what the checkpoint itself calls its classes; nothing if it says nothing.

    Case and punctuation do not count, and one of several synonyms is enough.
    """
    if len(carried) != len(labels):
        return
    differing = [(one, other) for one, other in zip(labels, carried, strict=True) if not _same_class(one, other)]
    if differing:
        one, other = differing[0]
        yield Finding(
            severity="warning",
            topic=TOPIC,
            message=f"The checkpoint names {len(differing):,} of its {len(labels):,} classes otherwise than the labels file; "
            f"the first is '{printable(other)}' there and '{one}' here.",
            advice="Make sure that the labels are in the order of the teacher's outputs.",
        )


def _same_class(one: str, other: str) -> bool:
    words = [{" ".join(re.findall(r"\w+", name.lower())) for name in label.split(",")} for label in (one, other)]
    return bool(words[0] & words[1])


def is_meaningless(text: str) -> bool:
    """Whether a name is a number, an identifier or a letter, which says nothing about images; digits are spared."""
    return any(pattern.fullmatch(text) for pattern in (_NUMBER, _HEXADECIMAL, _LETTER))


def _alike(pairs: Sequence[tuple[str, str, float]]) -> Iterator[Finding]:
    same = [pair for pair in pairs if pair[2] > SAME_TEXT]
    near = [pair for pair in pairs if SAME_TEXT >= pair[2] > NEARLY_SAME]
    if same:
        listed = _listed([f"'{one}' and '{other}'" for one, other, _ in same])
        yield Finding(
            severity="problem",
            topic=TOPIC,
            message=f"The class names {listed} mean the same to the text encoder.",
            advice="Tell them apart in words that it knows, such as 'crane (bird)' and 'crane (machine)'; the default "
            "encoder reads English.",
        )
    if near:
        listed = _listed([f"'{one}' and '{other}' (cosine {cosine:.2f})" for one, other, cosine in near])
        yield Finding(
            severity="warning",
            topic=TOPIC,
            message=f"The text encoder hardly tells these class names apart: {listed}.",
            advice="Where the classes look different, say in their names how.",
        )


def _meaningless(labels: Sequence[str], texts: Sequence[str]) -> Iterator[Finding]:
    if len(texts) >= ALPHABET and all(len(text) == 1 for text in texts):
        return
    empty = [label for label, text in zip(labels, texts, strict=True) if is_meaningless(text)]
    if empty:
        listed = _listed([f"'{label}'" for label in empty])
        yield Finding(
            severity="warning",
            topic=TOPIC,
            message=f"{len(empty):,} of {len(labels):,} class names mean nothing to the text encoder: {listed}.",
            advice="Say in words what the classes show; their images are generated from what the names mean.",
        )


def _unlike(pair: tuple[str, str, float], count: int) -> Finding:
    one, other, cosine = pair
    message = f"The most alike of {count:,} class names are '{one}' and '{other}', with a cosine of {cosine:.2f}."
    return Finding(severity="note", topic=TOPIC, message=message)


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - MOST_LISTED:,} more" if len(items) > MOST_LISTED else ""
    return ", ".join(items[:MOST_LISTED]) + more
