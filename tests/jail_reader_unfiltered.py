"""The same on a machine whose system calls the jail does not know."""

import platform

from tests.jail_reader import read

__all__ = ["prepare", "read"]


def prepare() -> None:
    platform.machine = lambda: "riscv64"
