"""Every error that a user can cause, and the exit code that it ends the program with.

CompressError               1   internal error
├── UsageError              2   a wrong option, setting or path
├── InputError              3   an unsupported input
│   └── UnsafeInputError    3   an input that would execute code, or is not what it claims to be
├── GateError               4   a gate failed, the artifacts are kept and marked rejected; or a delivery was changed
├── MissingResourceError    5   a dependency, encoder, piece of hardware or disk space is missing
│   └── MemoryFullError     5   a batch does not fit into the memory
├── BudgetError             6   no student fits the budget
├── DivergenceError         7   a loss or a weight grew beyond all bounds
└── Interrupted           130   stopped by the user; a run continues with the same command
"""

from typing import ClassVar, Literal


class CompressError(Exception):
    """One clear sentence, and a hint that says what to do about it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(CompressError):
    """A wrong option, setting or path."""

    exit_code = 2


class InputError(CompressError):
    """A checkpoint or labels file that is not supported."""

    exit_code = 3


class UnsafeInputError(InputError):
    """An input that would execute code when loaded, or is not the file that it should be."""


class GateError(CompressError):
    """A gate failed or could not be decided, which is a result, and not raised; or a delivery was changed, which is."""

    exit_code = 4


class MissingResourceError(CompressError):
    """A dependency, an encoder, a piece of hardware or disk space is missing."""

    exit_code = 5


class MemoryFullError(MissingResourceError):
    """The memory does not hold a batch of this kind of work; smaller ones may fit."""

    def __init__(self, work: Literal["student", "synthesis"]) -> None:
        setting = "distill.batch_size" if work == "student" else "synthesis.batch_size"
        super().__init__("The memory is full.", f"Smaller batches need less: --set {setting}=16, for example.")
        self.work = work


class BudgetError(CompressError):
    """No student fits the budget."""

    exit_code = 6


class DivergenceError(CompressError):
    """A loss or a weight is not finite, or far above where it was."""

    exit_code = 7


class Interrupted(CompressError):
    """The user stopped the command; what a run had finished is kept."""

    exit_code = 130


def is_out_of_memory(error: BaseException) -> bool:
    """torch's own class derives from RuntimeError, and on a CPU it raises that alone; torch need not be imported."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )
