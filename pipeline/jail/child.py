"""The jailed process: it gets ready, gives up its rights, and only then looks at the bytes."""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Protocol

from compress.pipeline.jail.lockdown import lock_down

ACCEPTED, REFUSED = b"+", b"-"
"""What an answer begins with: data or a sentence follows."""


class Refused(Exception):
    """The bytes are not what can be read; the message goes on after the file's name, such as `has no weights.`"""


class Reader(Protocol):
    """What a module must have to be run in the jail."""

    def prepare(self) -> None:
        """Import and do once whatever opens files, before that is forbidden."""

    def read(self, source: BinaryIO) -> Iterable[bytes | memoryview]:
        """Turn the bytes of `source` into the parts of an answer; raises `Refused`."""


def main(module: str, memory_bytes: int, cpu_seconds: int) -> None:
    """Answer on stdout: a line of JSON that says how it started, then `+` and data, or `-` and a sentence."""
    answers = _claim_stdout()
    try:
        reader: Reader = importlib.import_module(module)
        reader.prepare()
        missing = lock_down(memory_bytes, cpu_seconds)
    except Exception:  # noqa: BLE001  the installation is at fault; whoever started this process wants to know how
        _say(answers, json.dumps({"failed": traceback.format_exc()}).encode())
    else:
        _say(answers, json.dumps({"missing": missing}).encode() + b"\n")
        for part in _answer(reader):
            _say(answers, part)
    os._exit(0)  # what libraries do when Python ends may need rights


def _claim_stdout() -> BinaryIO:
    """What this process's stdout leads to, for answers alone; whatever prints does so into nothing."""
    answers = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    return answers


def _say(answers: BinaryIO, words: bytes | memoryview) -> None:
    answers.write(words)
    answers.flush()


def _answer(reader: Reader) -> Iterator[bytes | memoryview]:
    try:
        parts = reader.read(sys.stdin.buffer)
    except Refused as refusal:
        yield REFUSED + str(refusal).encode(errors="replace")
    except MemoryError:
        yield REFUSED + b"takes too much memory to read."
    except Exception as error:  # noqa: BLE001  a reader can fail at hostile bytes in any way
        yield REFUSED + f"is damaged, or made to break its reader ({type(error).__name__}).".encode()
    else:
        yield ACCEPTED
        yield from parts
