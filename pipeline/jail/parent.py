"""Starts the jail, hands it the bytes, and takes its answer as one takes a stranger's."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread, Timer
from typing import IO, Any

import compress
from compress.pipeline.errors import InputError, UnsafeInputError
from compress.pipeline.jail.child import ACCEPTED

STARTING_SECONDS = 60
"""For the interpreter and its imports on a slow disk; the limit on computing starts after them."""

_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from compress.pipeline.jail.child import main
main(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
"""

_ENVIRONMENT = {
    # no threads, which would take memory and no part in the work
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HOME": os.devnull,
    "LC_ALL": "C.UTF-8",
}

_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
"""What the libraries that a reader imports may need to be found."""

_LONGEST_START, _LONGEST_SENTENCE, _CHUNK = 100_000, 500, 2**20

_STOPPED = (-9, -24)
"""Return codes of a process that SIGKILL or SIGXCPU has ended."""

_HINT = "It is damaged, or made to do harm."


@dataclass(frozen=True, slots=True)
class Jailed:
    """What came out of the jail."""

    answer: bytearray
    """To be trusted no more than the file itself."""
    warnings: tuple[str, ...]
    """What the jail could not protect from on this system."""


@dataclass(frozen=True, slots=True)
class _Heard:
    """All that a jailed process said."""

    start: dict[str, Any]
    """How it started: from before it saw a byte of the file."""
    verdict: bytes
    answer: bytearray
    late: bool
    """Whether it was stopped because its time was over."""


def run_jailed(module: str, data: bytes | bytearray, *, name: str, memory_bytes: int, cpu_seconds: int) -> Jailed:
    """Have a module's `read` turn bytes into an answer, in a process that can do nothing else.

    The process can open no file and no connection, start no process and disturb none, and sees nothing of the
    environment. It may take `memory_bytes` beyond what its imports take, and `cpu_seconds` of computing; by the clock,
    twice as many and `STARTING_SECONDS`.

    Args:
        module: the full name of a module that has the functions of `child.Reader`.
        data: the file's content; the jail gets the bytes, never a path.
        name: the file's name, for messages.
        memory_bytes: the most memory that reading may take, and the most bytes that it may answer with.
        cpu_seconds: the most computing time that reading may take.

    Raises:
        UnsafeInputError: reading crashed, or did not keep to the limits.
        InputError: the module refuses the bytes; the sentence is the module's.
        RuntimeError: the process could not be started.
    """
    arguments = [json.dumps(_search_path()), module, str(memory_bytes), str(cpu_seconds)]
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", "-c", _START, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_ENVIRONMENT | {key: os.environ[key] for key in _KEPT_VARIABLES if key in os.environ},
        cwd=os.sep,
        start_new_session=True,  # Ctrl-C reaches this process alone, which ends the jail
    ) as process:
        heard = _converse(process, data, memory_bytes, STARTING_SECONDS + 2 * cpu_seconds)
    if heard.late or process.returncode in _STOPPED:
        raise UnsafeInputError(f"Reading '{name}' takes more than {cpu_seconds} seconds of computing.", _HINT)
    if "missing" not in heard.start:
        raise RuntimeError(f"the process that reads files safely did not start: {heard.start.get('failed', '')}")
    if len(heard.answer) > memory_bytes:
        raise UnsafeInputError(f"Reading '{name}' gives more than {memory_bytes:,} bytes.", _HINT)
    if process.returncode != 0:
        raise UnsafeInputError(f"Reading '{name}' crashes its reader.", _HINT)
    if heard.verdict != ACCEPTED:
        raise InputError(f"'{name}' {_one_line(heard.answer)}", _HINT)
    return Jailed(heard.answer, _warnings(name, heard.start["missing"]))


def _search_path() -> list[str]:
    """Where this process finds modules, this package first, so that the jail runs no start-up file of any kind."""
    package = Path(compress.__file__).parents[1]
    return [str(package), *(str(Path(entry).absolute()) for entry in sys.path if entry)]


def _converse(process: subprocess.Popen[bytes], data: bytes | bytearray, most: int, seconds: float) -> _Heard:
    """Hand over the bytes and hear what the process says, one byte more than allowed at most."""
    if process.stdin is None or process.stdout is None:
        raise TypeError("the process was started without pipes")
    late = Event()
    feeder = Thread(target=_feed, args=(process.stdin, data), daemon=True)
    clock = Timer(seconds, _stop, (process, late))
    feeder.start()
    clock.start()
    try:
        start = process.stdout.readline(_LONGEST_START)
        verdict, answer = process.stdout.read(1), _at_most(process.stdout, most + 1)
        if len(answer) <= most:
            process.wait()
    finally:
        clock.cancel()
        process.kill()
        feeder.join()
    return _Heard(json.loads(start or "{}"), verdict, answer, late.is_set())


def _feed(entrance: IO[bytes], data: bytes | bytearray) -> None:
    with suppress(OSError), entrance:  # the process may end before it has read everything
        entrance.write(data)


def _stop(process: subprocess.Popen[bytes], late: Event) -> None:
    late.set()
    process.kill()


def _at_most(stream: IO[bytes], most: int) -> bytearray:
    read = bytearray()
    while len(read) < most and (chunk := stream.read(min(_CHUNK, most - len(read)))):
        read += chunk
    return read


def _one_line(answer: bytearray) -> str:
    """The module's own sentence, or what the file has put in its place."""
    sentence = answer[:_LONGEST_SENTENCE].decode(errors="replace")
    return "".join(character if character.isprintable() else "?" for character in sentence)


def _warnings(name: str, missing: list[str]) -> tuple[str, ...]:
    if not missing:
        return ()
    lacking = " and without ".join(missing)
    return (f"'{name}' was read in a process of its own, but without {lacking}, which this system does not offer.",)
