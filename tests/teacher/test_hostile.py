"""The hostile corpus: nothing of it runs, everything is refused in one sentence, within bounds of time and memory."""

import io
import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.command import compress
from tests.teacher.hostile import HOSTILE
from tests.teacher.hostile.making import Canary, saved
from tests.teacher.hostile.read_all import ADDRESS_SPACE, SECONDS

SENTENCE = 400
"""Characters; the longest names five imports."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With all hostile files in `files`, and an empty folder to work in."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "files").mkdir()
    (folder / "here").mkdir()
    for name, maker in HOSTILE.items():
        (folder / "files" / name).write_bytes(maker(folder / "canary"))
    return folder


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, Any]:
    """How one process, limited to `ADDRESS_SPACE` more and `SECONDS` a file, refused each of them."""
    command = [sys.executable, "-W", "error", "-m", "tests.teacher.hostile.read_all", str(folder / "files")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command, cwd=folder / "here", env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, run.stdout[-1000:] + run.stderr
    assert run.stderr == ""
    return {outcome["name"]: outcome for outcome in map(json.loads, run.stdout.splitlines())}


def test_the_corpus_has_at_least_two_hundred_files() -> None:
    assert len(HOSTILE) >= 200


def test_every_hostile_file_is_refused_with_exit_code_3(outcomes: dict[str, Any]) -> None:
    assert outcomes.keys() == HOSTILE.keys()
    assert {name for name, outcome in outcomes.items() if outcome["exit_code"] != 3} == set()


def test_every_refusal_is_one_printable_sentence(outcomes: dict[str, Any]) -> None:
    for name, outcome in outcomes.items():
        message, hint = outcome["message"], outcome["hint"]
        assert message.isprintable() and message.endswith(".") and len(message) < SENTENCE, name
        assert all(line.isprintable() for line in hint.splitlines()), name
        assert name[:100] in message and "Traceback" not in message, name


def test_nothing_of_a_hostile_file_runs_and_no_file_is_made(folder: Path, outcomes: dict[str, Any]) -> None:
    assert outcomes
    assert not (folder / "canary").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["files", "here"]
    assert list((folder / "here").iterdir()) == []
    assert {path.name for path in (folder / "files").iterdir()} == HOSTILE.keys()


def test_no_hostile_file_takes_long(outcomes: dict[str, Any]) -> None:
    # The process ends itself where one takes `SECONDS` of computing; the slowest takes half a second.
    assert max(outcome["seconds"] for outcome in outcomes.values()) < SECONDS


def test_all_hostile_files_together_take_less_memory_than_one_may(outcomes: dict[str, Any]) -> None:
    peaks = [outcome["peak"] for outcome in outcomes.values()]
    assert max(peaks) - min(peaks) < ADDRESS_SPACE / 4


@pytest.mark.parametrize("name", sorted(name for name in HOSTILE if name.startswith("calls_")))
def test_what_would_be_called_is_named(outcomes: dict[str, Any], name: str) -> None:
    assert outcomes[name]["error"] == "UnsafeInputError"
    assert "would execute code when loaded: it imports " in outcomes[name]["message"]
    assert "--allow-pickle" in outcomes[name]["hint"]


@pytest.mark.parametrize("name", ["calls_os_system", "stride_zero", "two_ends", "terminal_commands", "nothing"])
def test_the_command_ends_with_exit_code_3_and_without_a_traceback(folder: Path, name: str) -> None:
    result = compress("inspect", folder / "files" / name)
    assert (result.exit_code, result.stdout) == (3, "")
    assert f"'{name}' " in result.stderr and "Traceback" not in result.stderr
    assert all(line.isprintable() for line in result.stderr.splitlines())


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_the_canary_shows_when_a_loader_runs_the_code(tmp_path: Path, protocol: int, legacy: bool) -> None:
    content = saved({"extra": Canary(tmp_path / "marker")}, protocol, legacy=legacy)
    with warnings.catch_warnings(action="ignore"):  # of a file left open
        torch.load(io.BytesIO(content), weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_canary_shows_when_python_runs_the_code(tmp_path: Path, protocol: int) -> None:
    pickle.loads(HOSTILE[f"plain_pickle_of_protocol_{protocol}"](tmp_path / "marker")).close()
    assert (tmp_path / "marker").exists()


def test_the_gadgets_run_where_nothing_holds_them_back(tmp_path: Path) -> None:
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(HOSTILE["breaks_after_the_payload"](tmp_path / "marker"))
    assert (tmp_path / "marker").exists()
