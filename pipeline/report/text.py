"""Numbers and foreign text as people read them."""

import math
import re
import unicodedata

from compress.pipeline.proportions import percent
from compress.pipeline.records import Proportion

MISSING = "–"  # noqa: RUF001 - an en dash stands for a value that there is none of

# Joiners shape letters of several scripts and reorder nothing.
_HARMLESS = ("\u200c", "\u200d")
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
# An entity never forms structure, unlike the character that it stands for.
_MARKDOWN = str.maketrans(
    {character: f"&#{ord(character)};" for character in "&<>|`\\"}
    | {character: f"\\{character}" for character in "*_[]~$"}
)
# What begins a list, a heading or a rule at the start of a line, and what is made a link wherever it stands.
_MARKDOWN_START = re.compile(r"^(?=[-+=#])|^(\d+)(?=[.)](?:\s|$))")
_MARKDOWN_LINK = re.compile(r"(?=://)|(?<=www)(?=\.)", re.IGNORECASE)


def visible(text: str) -> str:
    """The text with every control, line-breaking and reordering character written out, such as `\\u001b`."""
    return "".join(
        f"\\u{ord(character):04x}"
        if unicodedata.category(character) in _UNSEEN and character not in _HARMLESS
        else character
        for character in text
    )


def markdown(text: str) -> str:
    """The text so that Markdown shows it as it is: no markup, no table cell, no HTML, no link.

    Source: CommonMark 0.31, sections 2.4 (backslash escapes) and 2.5 (entities, which never form structure).
    """
    escaped = visible(text).translate(_MARKDOWN)
    return _MARKDOWN_LINK.sub(r"\\", _MARKDOWN_START.sub(r"\1\\", escaped))


def share(part: Proportion | None) -> str:
    """A share in percent, of nothing a dash."""
    return percent(part.value) if part is not None and part.total else MISSING


def percentage(value: float) -> str:
    """A share that is no count, in percent; a dash where there is none."""
    return percent(value) if math.isfinite(value) else MISSING


def interval(part: Proportion) -> str:
    """A 95 % interval as `94.7 to 97.6 %`."""
    return f"{percent(part.low).removesuffix(' %')} to {percent(part.high)}"


def significant(value: float) -> str:
    """Three significant digits, never in powers of ten: `0.0123`, `1.23`, `1,234`; nearer to 0 than that, `< 0.0001`."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if abs(value) < 1e-4:
        return "0" if value == 0 else "< 0.0001"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def size(size_bytes: int) -> str:
    """Bytes as `84.2 kB` or `11.2 MB`, in powers of 1000."""
    return f"{significant(size_bytes / 1e6)} MB" if size_bytes >= 1e6 else f"{significant(size_bytes / 1e3)} kB"


def milliseconds(latency_ms: float | None) -> str:
    return MISSING if latency_ms is None else f"{significant(latency_ms)} ms"


def decibels(value: float) -> str:
    return f"{value:.1f} dB" if math.isfinite(value) else f"{significant(value)} dB"


def change(lost: float) -> str:
    """A lost share as a change in points: `-0.4 points`, `+0.2 points` or `no change`; a dash where there is none."""
    if math.isnan(lost):
        return MISSING
    points = -100 * lost
    return f"{points:+.1f} points" if abs(points) >= 0.05 else "no change"


def duration(seconds: float) -> str:
    """Seconds as `0.42 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 60:
        return f"{significant(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def count(number: int) -> str:
    """A whole number with its thousands set apart."""
    return f"{number:,}"
