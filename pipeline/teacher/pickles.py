"""What a pickle would import, read off its opcodes; nothing is executed.

This writes messages. It never decides whether a file may be loaded: PyTorch's weights-only reader does.
"""

import io
import pickletools
from collections.abc import Iterator

_PICKLES_IN_A_FILE = 5
"""PyTorch's legacy format opens with five: magic number, protocol, system, the object, the names of its storages."""

_PUSHED_FROM_MEMO = {"GET", "BINGET", "LONG_BINGET"}
_STORED_IN_MEMO = {"PUT", "BINPUT", "LONG_BINPUT"}


def imported_names(stream: bytes) -> list[str]:
    """Full names of the classes and functions that unpickling would look up, sorted, up to the first broken opcode.

    What PyTorch itself uses to store plain tensors is not listed.
    """
    return sorted({name for name in _lookups(stream) if not _stores_tensors(name)})


def is_pickle(stream: bytes) -> bool:
    """Whether the bytes begin with one complete pickle of any protocol."""
    try:
        for _ in pickletools.genops(stream):
            pass
    except ValueError:
        return False
    return True


def _lookups(stream: bytes) -> Iterator[str]:
    buffer = io.BytesIO(stream)
    try:
        for _ in range(_PICKLES_IN_A_FILE):
            yield from _lookups_of_one(buffer)
    except ValueError:
        return


def _lookups_of_one(buffer: io.BytesIO) -> Iterator[str]:
    """Source: opcodes of the pickle machine, https://docs.python.org/3/library/pickletools.html."""
    strings: list[str] = []  # as pushed; STACK_GLOBAL takes the last two
    memo: dict[int, str] = {}
    memoized, top = 0, ""
    for opcode, argument, _ in pickletools.genops(buffer):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:])
        elif opcode.name in _STORED_IN_MEMO:
            memo[int(argument or 0)] = top
        elif opcode.name == "MEMOIZE":
            memo[memoized] = top
            memoized += 1
        else:
            top = memo.get(int(argument or 0), "") if opcode.name in _PUSHED_FROM_MEMO else _text(argument)
            strings += [top] if top else []


def _text(argument: object) -> str:
    return argument if isinstance(argument, str) else ""


def _stores_tensors(name: str) -> bool:
    storage = name.startswith("torch.") and name.endswith("Storage")
    return storage or name.startswith("torch._utils._rebuild_") or name == "collections.OrderedDict"
