"""Takes from this process, for good, all rights that reading bytes from memory does not need.

Source: Linux manual pages seccomp(2), prctl(2), setrlimit(2); numbers of system calls from the kernel's
arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

import ctypes
import math
import os
import platform
import struct
import sys
import time

# name, number on x86-64, number on 64-bit ARM
_ALLOWED_CALLS = (
    ("read", 0, 63),
    ("write", 1, 64),
    ("close", 3, 57),
    ("fstat", 5, 80),
    ("lseek", 8, 62),
    ("mmap", 9, 222),
    ("mprotect", 10, 226),
    ("munmap", 11, 215),
    ("brk", 12, 214),
    ("rt_sigprocmask", 14, 135),
    ("rt_sigreturn", 15, 139),
    ("writev", 20, 66),
    ("sched_yield", 24, 124),
    ("mremap", 25, 216),
    ("madvise", 28, 233),
    ("getpid", 39, 172),
    ("exit", 60, 93),
    ("gettimeofday", 96, 169),
    ("getrusage", 98, 165),
    ("gettid", 186, 178),
    ("futex", 202, 98),
    ("sched_getaffinity", 204, 123),
    ("restart_syscall", 219, 128),
    ("clock_gettime", 228, 113),
    ("clock_nanosleep", 230, 115),
    ("exit_group", 231, 94),
    ("getcpu", 309, 168),
    ("getrandom", 318, 278),
)
"""Memory, time, and files that are open already. Nothing that opens, names or connects anything, no process, no thread."""

# machine: audit architecture, number of seccomp(2), column of _ALLOWED_CALLS
_MACHINES = {"x86_64": (0xC000003E, 317, 1), "aarch64": (0xC00000B7, 277, 2)}

_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # opcodes of the classic BPF: BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # SECCOMP_RET_ALLOW, _ERRNO with EPERM, _KILL_PROCESS
_SET_MODE_FILTER, _ALL_THREADS = 1, 1  # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC
_NO_NEW_PRIVILEGES = 38  # PR_SET_NO_NEW_PRIVS


class _FilterProgram(ctypes.Structure):
    """struct sock_fprog: the number of instructions, and where they are."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def lock_down(memory_bytes: int, cpu_seconds: int) -> tuple[str, ...]:
    """Leave this process its memory, its time and the files that it has open, and nothing else.

    Args:
        memory_bytes: how much memory it may still take beyond what it has.
        cpu_seconds: how much computing time it may still take.

    Returns:
        What this system does not protect from, a clause each; nothing on Linux on x86-64 and 64-bit ARM.
    """
    missing = (_limit_resources(memory_bytes, cpu_seconds), _filter_calls())
    return tuple(clause for clause in missing if clause)


def _limit_resources(memory_bytes: int, cpu_seconds: int) -> str:
    try:
        import resource
    except ImportError:
        return "limits on memory, time and files"
    limits = {
        resource.RLIMIT_CPU: math.ceil(time.process_time()) + cpu_seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 0,  # what is open stays open; nothing more can be, no socket either
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    taken = _address_space()
    if taken is not None:
        limits[resource.RLIMIT_AS] = taken + memory_bytes
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    return "a limit on memory" if taken is None else ""


def _address_space() -> int | None:
    """Bytes of address space that this process has; None where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123  lean: this process loads what it must
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def _filter_calls() -> str:
    """Have the kernel refuse every system call but the allowed ones, in all threads."""
    machine = platform.machine()
    if not (sys.platform == "linux" and machine in _MACHINES and ctypes.sizeof(ctypes.c_void_p) == 8):
        return "a filter of system calls"
    architecture, seccomp, column = _MACHINES[machine]
    instructions = _filter_program(architecture, [int(call[column]) for call in _ALLOWED_CALLS])
    program = _FilterProgram(len(instructions) // 8, instructions)
    libc = ctypes.CDLL(None)
    forbidden = libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    refused = libc.syscall(ctypes.c_long(seccomp), _SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(program))
    return "a filter of system calls" if forbidden or refused else ""


def _filter_program(architecture: int, allowed: list[int]) -> bytes:
    """Instructions of struct sock_filter: the code, how far to jump if true and if false, and the operand."""
    checks = [
        # a match jumps over the later checks and over the refusal
        (_JUMP_IF_EQUAL, len(allowed) - index, 0, number)
        for index, number in enumerate(allowed)
    ]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        *checks,
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
