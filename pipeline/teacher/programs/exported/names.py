"""What the names of a program stand for while calls change tensors in place.

A call in place becomes a pure one, whose result the changed tensor's names stand for from then on. Other names for the
same memory, such as a reshaped tensor's, would be wrong after that, and whoever asks for one is refused.
"""

from collections import defaultdict

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.programs.graph import Argument
from compress.pipeline.teacher.readers.files import DAMAGED_HINT
from compress.pipeline.teacher.readers.formats import printable

_PURE_HINT = "Save program.run_decompositions() instead of the program, which changes nothing in place."


class Names:
    """Names of a program's values, each defined once.

    Raises:
        InputError: a name is defined twice, not at all, or no longer right.
    """

    def __init__(self, file_name: str) -> None:
        self._file_name = file_name
        self._meanings: dict[str, Argument] = {}
        self._memory: dict[str, str] = {}
        self._sharing: defaultdict[str, list[str]] = defaultdict(list)
        self._outdated: set[str] = set()

    def define(self, name: str, meaning: Argument, *, sharing: str | None = None) -> None:
        """Give a name its meaning; it may share memory with an earlier one's."""
        if name in self._meanings:
            raise InputError(f"'{self._file_name}' defines '{printable(name)}' twice.", DAMAGED_HINT)
        self._meanings[name] = meaning
        self._memory[name] = self._memory.get(sharing or name, name)
        self._sharing[self._memory[name]].append(name)

    def change(self, name: str, meaning: Argument) -> None:
        """A call changed the tensor of that name in place, and this is its result."""
        before = self[name]
        for other in self._sharing[self._memory[name]]:
            if self._meanings[other] == before:
                self._meanings[other] = meaning
            elif self._meanings[other] != meaning:
                self._outdated.add(other)

    def __getitem__(self, name: str) -> Argument:
        if name in self._outdated:
            raise InputError(
                f"'{self._file_name}' reads '{printable(name)}' after another view of its memory was changed in place.",
                _PURE_HINT,
            )
        if name not in self._meanings:
            raise InputError(
                f"'{self._file_name}' refers to '{printable(name)}', which it does not have.", DAMAGED_HINT
            )
        return self._meanings[name]
