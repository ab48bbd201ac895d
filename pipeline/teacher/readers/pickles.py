"""Reads pickles without executing anything in them: a pickle machine that knows data and no code.

What a pickle would import becomes a mere name. A table says for some names what they make of their arguments, out of
plain data; every other name is noted, and makes nothing. So whatever a pickle says, it costs at most what its own length
allows: values are built once, nothing is hashed but short texts and small integers, and nothing is compared or copied.

Source: the opcodes of the pickle machine, https://docs.python.org/3/library/pickletools.html.
"""

import io
import pickletools
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.readers.stored import ImplausibleTensor

MOST_BYTES = 256 * 2**20
"""Of a pickle: names and numbers, beside which the tensors lie."""

MOST_OPCODES = 1_000_000
"""A checkpoint takes some forty for each tensor; this many take a second or two, and at most 300 MB."""

_MOST_ARGUMENTS = 32
_LONGEST_NAME = 1_000
_LONGEST_KEY = 1_000
_LARGEST_KEY = 2**31
_MOST_BITS = 128

_VALUES = """
    BININT BININT1 BININT2 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE
    BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
"""
"""Opcodes that push their argument."""

_PYTHON_2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class BrokenPickle(ValueError):
    """The stream is no pickle, or not one to the end."""


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that a pickle names."""

    name: str
    """With its module, as Python 3 calls it."""


class Inert:
    """Stands for an object that is of no interest, and takes whatever state the pickle gives it."""

    def take_state(self, state: object) -> None:
        """What the pickle adds after the arguments; dropped here."""


def inert(*_: object) -> Inert:
    """What most names make of their arguments."""
    return Inert()


Constructor = Callable[..., object]
"""What a name makes of the arguments that the pickle calls it with."""


def construct(constructor: Constructor, arguments: Sequence[Any]) -> object:
    """What a constructor makes of arguments, unless they are so many that to hand them over would take long.

    Raises:
        BrokenPickle: they are.
    """
    if len(arguments) > _MOST_ARGUMENTS:
        raise BrokenPickle("more arguments than a function would take")
    return constructor(*arguments)


def is_pickle(data: bytearray) -> bool:
    """Whether the bytes begin with a complete pickle of any protocol, or with more opcodes than are read."""
    try:
        with warnings.catch_warnings(action="ignore"):
            deque(islice(pickletools.genops(io.BytesIO(memoryview(data)[:MOST_BYTES])), MOST_OPCODES), maxlen=0)
    except ValueError:
        return False
    return True


class Machine:
    """Runs one pickle.

    Attributes:
        unknown: full names of what the pickle would import beyond the table, known even if the stream breaks later.
    """

    def __init__(self, constructors: Mapping[str, Constructor], load_stored: Constructor | None = None) -> None:
        """Set the machine up.

        Args:
            constructors: what may be called, by full name.
            load_stored: from a persistent id to what lies outside of the pickle; None where nothing may.
        """
        self.unknown: set[str] = set()
        self._constructors, self._load_stored = constructors, load_stored
        self._stack: list[Any] = []
        self._below_marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> object:
        """The pickle's value; the stream is left behind its end.

        Raises:
            BrokenPickle: the stream ends early or makes no sense.
            ImplausibleTensor: a tensor does not fit its storage.
            InputError: a constructor refused its arguments.
        """
        try:
            with warnings.catch_warnings(action="ignore"):  # of texts with odd escapes
                for opcode, argument, _ in islice(pickletools.genops(stream), MOST_OPCODES):
                    _STEPS[opcode.name](self, argument)
            (value,) = self._stack
        except (InputError, ImplausibleTensor):
            raise
        except Exception as error:  # it can break in as many ways as there are opcodes, and have ones without use here
            raise BrokenPickle(str(error)) from error
        return value

    def _ignore(self, _: Any) -> None:
        """What only helps other readers to read ahead."""

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _integer(self, number: int) -> None:
        """Longer ones, such as the states of random generators, are of no use, and slow to compute with."""
        self._stack.append(number if number.bit_length() <= _MOST_BITS else Inert())

    def _pop_to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below_marks.pop()
        return items

    def _mark(self, _: Any) -> None:
        self._below_marks.append(self._stack)
        self._stack = []

    def _stop(self, _: Any) -> None:
        if self._below_marks:
            raise BrokenPickle("a mark is left over")

    def _pop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_to_mark()

    def _drop_to_mark(self, _: Any) -> None:
        self._pop_to_mark()

    def _duplicate(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _put(self, index: int | None) -> None:
        place = len(self._memo) if index is None else index
        if not 0 <= place <= MOST_OPCODES:
            raise BrokenPickle("a place in the memo that no pickle would use")
        self._memo[place] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise BrokenPickle("a tuple of more than there is")
        items = tuple(self._stack[-count:])
        del self._stack[-count:]
        self._stack.append(items)

    def _tuple(self, _: Any) -> None:
        items = self._pop_to_mark()
        self._stack.append(tuple(items))

    def _list(self, _: Any) -> None:
        items = self._pop_to_mark()
        self._stack.append(items)

    def _dictionary(self, _: Any) -> None:
        items = self._pop_to_mark()
        self._stack.append({})
        self._set(items)

    def _append(self, _: Any) -> None:
        self._extend([self._stack.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, items: list[Any]) -> None:
        self._check_target(list)
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(items)

    def _check_target(self, kind: type) -> None:
        """Items go where they belong, or into an object of no interest; a pickle that puts them elsewhere is forged."""
        if not isinstance(self._stack[-1], kind | Inert):
            raise BrokenPickle(f"items for something other than a {kind.__name__}")

    def _set_item(self, _: Any) -> None:
        items = self._stack[-2:]
        del self._stack[-2:]
        self._set(items)

    def _set_items(self, _: Any) -> None:
        self._set(self._pop_to_mark())

    def _set(self, items: Sequence[Any]) -> None:
        """Keys that weights, labels or settings do not have are dropped with their values."""
        self._check_target(dict)
        if isinstance(self._stack[-1], dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            self._stack[-1].update((key, value) for key, value in pairs if may_be_key(key))

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(self._named(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(self._named(module, name))

    def _named(self, module: str, name: str) -> Global:
        if len(module) + len(name) > _LONGEST_NAME:
            raise BrokenPickle("a name that no module would have")
        full_name = f"{_PYTHON_2_MODULES.get(module, module)}.{name}"
        if full_name not in self._constructors:
            self.unknown.add(full_name)
        return Global(full_name)

    def _call(self, function: Any, arguments: Sequence[Any]) -> None:
        """Source: REDUCE, OBJ, INST and NEWOBJ, which all call a class or function with a tuple of arguments."""
        self._stack.append(construct(self._constructors.get(function.name, inert), arguments))

    def _reduce(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._call(function, arguments)

    def _reduce_with_keywords(self, _: Any) -> None:
        self._stack.pop()
        self._reduce(None)

    def _instance(self, argument: str) -> None:
        arguments = self._pop_to_mark()
        self._global(argument)
        self._call(self._stack.pop(), arguments)

    def _object(self, _: Any) -> None:
        function, *arguments = self._pop_to_mark()
        self._call(function, arguments)

    def _build(self, _: Any) -> None:
        """State beyond the arguments: the metadata of dictionaries and attributes of tensors are dropped."""
        state = self._stack.pop()
        if isinstance(self._stack[-1], Inert):
            self._stack[-1].take_state(state)

    def _stored(self, argument: Any) -> None:
        if self._load_stored is None:
            raise BrokenPickle("it refers to something outside")
        self._stack.append(self._load_stored(argument))

    def _stored_from_stack(self, _: Any) -> None:
        self._stored(self._stack.pop())


_STEPS: Mapping[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(_VALUES.split(), Machine._push),
    **dict.fromkeys(("INT", "LONG", "LONG1", "LONG4"), Machine._integer),
    **dict.fromkeys(("PROTO", "FRAME", "READONLY_BUFFER"), Machine._ignore),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine._put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine._get),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), Machine._appends),
    **dict.fromkeys(("LIST", "FROZENSET"), Machine._list),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), Machine._reduce),
    "NONE": lambda machine, _: machine._push(None),
    "NEWTRUE": lambda machine, _: machine._push(True),
    "NEWFALSE": lambda machine, _: machine._push(False),
    "EMPTY_TUPLE": lambda machine, _: machine._push(()),
    "EMPTY_LIST": lambda machine, _: machine._push([]),
    "EMPTY_DICT": lambda machine, _: machine._push({}),
    "EMPTY_SET": lambda machine, _: machine._push([]),  # a set would hash what it holds, and nothing asks for one
    "MARK": Machine._mark,
    "STOP": Machine._stop,
    "POP": Machine._pop,
    "POP_MARK": Machine._drop_to_mark,
    "DUP": Machine._duplicate,
    "TUPLE1": lambda machine, _: machine._tuple_of(1),
    "TUPLE2": lambda machine, _: machine._tuple_of(2),
    "TUPLE3": lambda machine, _: machine._tuple_of(3),
    "TUPLE": Machine._tuple,
    "DICT": Machine._dictionary,
    "APPEND": Machine._append,
    "SETITEM": Machine._set_item,
    "SETITEMS": Machine._set_items,
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "NEWOBJ_EX": Machine._reduce_with_keywords,
    "INST": Machine._instance,
    "OBJ": Machine._object,
    "BUILD": Machine._build,
    "PERSID": Machine._stored,
    "BINPERSID": Machine._stored_from_stack,
}


def may_be_key(key: object) -> bool:
    """Short texts and small integers: to hash or to compare others can be made to take forever."""
    if isinstance(key, str):
        return len(key) <= _LONGEST_KEY
    return isinstance(key, int) and -_LARGEST_KEY < key < _LARGEST_KEY
