import json
import os
import platform
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compress.pipeline.errors import InputError, UnsafeInputError
from compress.pipeline.jail import lockdown, parent
from compress.pipeline.jail.parent import Jailed, run_jailed
from tests.jail_reader import ATTEMPTS

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="elsewhere the jail says what it cannot protect from",
)

MEMORY = 2**28
ROOT = Path(__file__).parents[1]


def jailed(
    deed: str, *, reader: str = "tests.jail_reader", seconds: int = 5, rest: bytes = b"", **asked: Any
) -> Jailed:
    data = json.dumps({"deed": deed, **asked}).encode() + b"\n" + rest
    return run_jailed(reader, data, name="t.pt", memory_bytes=MEMORY, cpu_seconds=seconds)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outside")
    (folder / "victim").write_text("untouched")
    return folder


@pytest.fixture(scope="module")
def asked(folder: Path) -> Iterator[dict[str, Any]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        files = {"canary": str(folder / "canary"), "victim": str(folder / "victim")}
        yield {**files, "port": server.getsockname()[1], "much": 2 * MEMORY}


@pytest.fixture(scope="module")
def outcomes(asked: dict[str, Any]) -> dict[str, str]:
    """What came of all attempts in one jail."""
    outcomes: dict[str, str] = json.loads(jailed("attempts", **asked).answer)
    return outcomes


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_in_the_jail_it_is_impossible_to(attempt: str, outcomes: dict[str, str], folder: Path) -> None:
    assert outcomes[attempt] in ("PermissionError", "RuntimeError", "MemoryError")  # RuntimeError: no thread
    assert [path.name for path in folder.iterdir()] == ["victim"]
    assert (folder / "victim").read_text() == "untouched"


def test_outside_of_the_jail_all_of_it_is_possible(asked: dict[str, Any], tmp_path: Path) -> None:
    # The positive control: without it, the test above could pass for attempts that are wrong.
    (tmp_path / "victim").write_text("touched")
    asked = asked | {"canary": str(tmp_path / "canary"), "victim": str(tmp_path / "victim")}
    program = (
        "import json, sys; from tests.jail_reader import attempts; print(json.dumps(attempts(json.loads(sys.argv[1]))))"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    command = [sys.executable, "-c", program, json.dumps(asked)]
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    outcomes = json.loads(run.stdout)
    assert set(outcomes) == set(ATTEMPTS)
    # A container may forbid these by itself.
    assert {name for name, outcome in outcomes.items() if outcome != "done"} <= {
        "queue system calls",
        "trace a process",
    }


def test_the_jail_sees_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    seen = json.loads(jailed("environment").answer)
    assert "SECRET" not in seen
    assert seen["LD_LIBRARY_PATH"] == "/nowhere"
    assert seen["HOME"] == os.devnull


def test_large_files_and_answers_go_through_and_need_not_be_read_to_the_end() -> None:
    result = jailed("answer", length=5_000_000, rest=b"y" * 5_000_000)
    assert result.answer == b"x" * 5_000_000
    assert result.warnings == ()


def test_what_a_reader_prints_is_not_its_answer() -> None:
    assert jailed("print").answer == b"answered"


def test_a_refusal_is_one_sentence_whatever_the_file_made_of_it() -> None:
    with pytest.raises(InputError) as refused:
        jailed("refuse", sentence="holds \x1b[31m a\nquantized thing " + 1000 * "x")
    assert refused.value.message.startswith("'t.pt' holds ?[31m a?quantized thing xxx")
    assert len(refused.value.message) == len("'t.pt' ") + 500


def test_a_reader_that_fails_is_a_damaged_file() -> None:
    with pytest.raises(InputError, match=r"^'t\.pt' is damaged, or made to break its reader \(KeyError\)\.\n"):
        jailed("fail")


def test_too_much_memory_is_refused() -> None:
    with pytest.raises(InputError, match=r"^'t\.pt' takes too much memory to read\.\n"):
        jailed("take memory", much=MEMORY)


def test_an_answer_longer_than_the_memory_allowed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent, "_at_most", lambda stream, most: stream.read(most) + b"x" * MEMORY)
    with pytest.raises(UnsafeInputError, match=r"^Reading 't\.pt' gives more than 268,435,456 bytes\.\n"):
        jailed("answer", length=1)


def test_an_endless_computation_is_ended() -> None:
    with pytest.raises(UnsafeInputError, match=r"^Reading 't\.pt' takes more than 1 seconds of computing\.\n"):
        jailed("loop", seconds=1)


def test_an_endless_wait_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent, "STARTING_SECONDS", 1)
    with pytest.raises(UnsafeInputError, match=r"^Reading 't\.pt' takes more than 0 seconds of computing\.\n"):
        jailed("sleep", seconds=0)


@pytest.mark.parametrize("deed", ["crash", "end"])
def test_a_crash_is_contained(deed: str) -> None:
    with pytest.raises(UnsafeInputError, match=r"^Reading 't\.pt' crashes its reader\.\n"):
        jailed(deed)


def test_a_reader_that_cannot_be_imported_is_an_internal_error() -> None:
    with pytest.raises(RuntimeError, match=r"did not start: (.|\n)*No module named 'tests\.no_such_reader'"):
        jailed("print", reader="tests.no_such_reader")


def test_a_jail_with_a_gap_says_so_and_keeps_its_limits(asked: dict[str, Any], tmp_path: Path) -> None:
    files = {"canary": str(tmp_path / "canary"), "victim": str(tmp_path / "victim")}
    result = jailed("attempts", reader="tests.jail_reader_unfiltered", **(asked | files))
    assert result.warnings == (
        "'t.pt' was read in a process of its own, but without a filter of system calls, which this system does not offer.",
    )
    outcomes = json.loads(result.answer)
    for attempt in ("write a file", "make a socket", "start a process", "take much memory"):
        assert outcomes[attempt] in ("OSError", "BlockingIOError", "MemoryError"), attempt


def test_closed_standard_streams_do_no_harm(tmp_path: Path) -> None:
    program = (
        "import pathlib; from tests.test_jail import jailed; "
        f"pathlib.Path({str(tmp_path / 'answer')!r}).write_bytes(jailed('print').answer)"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    subprocess.run(["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, program], check=True, env=environment)
    assert (tmp_path / "answer").read_bytes() == b"answered"


def verdict(program: bytes, architecture: int, number: int) -> int:
    """What the kernel makes of a filter: classic BPF with the four instructions that it uses.

    Source: https://docs.kernel.org/userspace-api/seccomp_filter.html, struct seccomp_data: number, then architecture.
    """
    instructions = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    place, register = 0, 0
    while True:
        code, if_true, if_false, operand = instructions[place]
        place += 1
        if code == 0x20:
            register = {0: number, 4: architecture}[operand]
        elif code == 0x15:
            place += if_true if register == operand else if_false
        else:
            assert code == 0x06
            return int(operand)


@pytest.mark.parametrize(("architecture", "column"), [(0xC000003E, 1), (0xC00000B7, 2)])
def test_the_filter_lets_the_listed_calls_pass_and_no_other(architecture: int, column: int) -> None:
    allowed = [int(call[column]) for call in lockdown._ALLOWED_CALLS]
    program = lockdown._filter_program(architecture, allowed)
    for number in range(-1, 600):
        assert (verdict(program, architecture, number) == 0x7FFF0000) == (number in allowed)  # SECCOMP_RET_ALLOW
    assert verdict(program, architecture, 59) == 0x00050001  # SECCOMP_RET_ERRNO with EPERM
    assert verdict(program, 0x40000003, allowed[0]) == 0x80000000  # another architecture: SECCOMP_RET_KILL_PROCESS
