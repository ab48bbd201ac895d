"""What the tests have a jailed process do: JSON says which of these, and with which files."""

import ctypes
import json
import os
import platform
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from compress.pipeline.jail.child import Refused

MACHINE = platform.machine()
PTRACE, IO_URING_SETUP, PRLIMIT = {"x86_64": (101, 425, 302), "aarch64": (117, 425, 261)}.get(MACHINE, (0, 0, 0))


def prepare() -> None:
    """Everything is imported."""


def read(source: BinaryIO) -> list[bytes]:
    asked = json.loads(source.readline())
    answer = _DEEDS[asked["deed"]](asked)
    return [answer] if isinstance(answer, bytes) else [json.dumps(answer).encode()]


def attempts(asked: dict[str, Any]) -> dict[str, str]:
    """What each forbidden thing came to: `done`, or the error's name."""
    return {name: _outcome(attempt, asked) for name, attempt in ATTEMPTS.items()}


def _outcome(attempt: Callable[[dict[str, Any]], object], asked: dict[str, Any]) -> str:
    try:
        attempt(asked)
    except Exception as error:  # noqa: BLE001  which one is what is asked
        return type(error).__name__
    return "done"


def _fork(_: dict[str, Any]) -> None:
    process = os.fork()
    if process == 0:
        os._exit(0)
    os.waitpid(process, 0)


def _thread(_: dict[str, Any]) -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


def _system_call(*arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(*(ctypes.c_long(argument) for argument in arguments)) < 0:
        raise OSError(ctypes.get_errno(), "refused")


def _connect(asked: dict[str, Any]) -> None:
    with socket.socket() as connection:
        connection.connect(("127.0.0.1", asked["port"]))


ATTEMPTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "read a file": lambda asked: Path(asked["victim"]).read_bytes(),
    "write a file": lambda asked: Path(asked["canary"]).write_text("x"),
    "append to a file": lambda asked: os.open(asked["victim"], os.O_WRONLY | os.O_APPEND),
    "make a folder": lambda asked: Path(asked["canary"] + "-folder").mkdir(),
    "make a link": lambda asked: Path(asked["canary"] + "-link").symlink_to(asked["victim"]),
    "make a second name": lambda asked: Path(asked["canary"] + "-name").hardlink_to(asked["victim"]),
    "change who may read a file": lambda asked: Path(asked["victim"]).chmod(0o777),
    "cut a file": lambda asked: os.truncate(asked["victim"], 0),
    "rename a file": lambda asked: Path(asked["victim"]).rename(asked["canary"] + "-renamed"),
    "delete a file": lambda asked: Path(asked["canary"] + "-renamed").unlink(),
    "list a folder": lambda asked: os.listdir("/"),  # noqa: PTH208
    "look at a file": lambda asked: Path("/").stat(),
    "make a file in memory": lambda asked: os.memfd_create("x"),
    "make a socket": lambda asked: socket.socket().close(),
    "make a pair of sockets": lambda asked: socket.socketpair(),
    "connect": _connect,
    "start a process": lambda asked: subprocess.run(["true"], check=True),
    "fork": _fork,
    "start a thread": _thread,
    "signal the parent": lambda asked: os.kill(os.getppid(), signal.SIGCONT),
    "trace a process": lambda asked: _system_call(PTRACE, 0, 0, 0, 0),
    "queue system calls": lambda asked: _system_call(
        IO_URING_SETUP, 1, ctypes.addressof(ctypes.create_string_buffer(120))
    ),
    "change its limits": lambda asked: _system_call(
        PRLIMIT, 0, 7, 0, ctypes.addressof(ctypes.create_string_buffer(16))
    ),
    "take much memory": lambda asked: bytearray(asked["much"]),
}


def _refuse(asked: dict[str, Any]) -> bytes:
    raise Refused(asked["sentence"])


def _loop(_: dict[str, Any]) -> bytes:
    while True:
        pass


def _sleep(_: dict[str, Any]) -> bytes:
    time.sleep(60)
    return b""


def _crash(_: dict[str, Any]) -> bytes:
    return ctypes.string_at(0)


def _print(_: dict[str, Any]) -> bytes:
    print("printed", flush=True)
    return b"answered"


def _end(_: dict[str, Any]) -> bytes:
    os._exit(3)


_DEEDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "attempts": attempts,
    "environment": lambda asked: dict(os.environ),
    "answer": lambda asked: b"x" * asked["length"],
    "take memory": lambda asked: b"x" * asked["much"] * 2,
    "fail": lambda asked: asked["nothing"],
    "refuse": _refuse,
    "loop": _loop,
    "sleep": _sleep,
    "crash": _crash,
    "print": _print,
    "end": _end,
}
