"""Every error that a user can cause, and the exit code that it ends the program with.

CompressError               1   internal error
├── UsageError              2   a wrong option, setting or path
├── InputError              3   an unsupported input
│   └── UnsafeInputError    3   an input that would execute code, or is not what it claims to be
├── GateError               4   a gate failed; the artifacts are kept and marked rejected
├── MissingResourceError    5   a dependency, encoder, piece of hardware or disk space is missing
├── BudgetError             6   no student fits the budget
└── Interrupted           130   stopped by the user; the same command continues
"""

from typing import ClassVar


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
    """A gate failed, or could not be decided; the command has its result all the same, so this is never raised."""

    exit_code = 4


class MissingResourceError(CompressError):
    """A dependency, an encoder, a piece of hardware or disk space is missing."""

    exit_code = 5


class BudgetError(CompressError):
    """No student fits the budget."""

    exit_code = 6


class Interrupted(CompressError):
    """The user stopped the run; what was finished is kept."""

    exit_code = 130
