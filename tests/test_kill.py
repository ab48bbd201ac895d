"""The real command, killed with SIGKILL at points spread over distillation, ends with the bits of one that was not."""

import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.command import compress

POINTS, ROUNDS, STEPS = 5, 3, 3


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    yield import_module("kill_test")
    sys.modules.pop("kill_test")


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(
    tmp_path: Path, teacher_file: Path, labels_file: Path, script: Any
) -> None:
    words = [teacher_file, "--labels", labels_file, *script.arguments(ROUNDS, STEPS)]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert compress(*words, "-o", whole).exit_code in (0, 4)
    for stage in ("1-intake", "2-embed"):  # Loading a text encoder takes seconds.
        shutil.copytree(whole / "work" / stage, killed / "work" / stage)
    (killed / ".compress").touch()
    points = script.draw(POINTS, script.checkpoints(ROUNDS, STEPS), seed=0)
    kills = [script.kill(words, killed, target, delay) for target, delay in points]
    assert None not in kills
    assert not (killed / "work" / "3-distill").exists()
    assert compress(*words, "-o", killed).exit_code in (0, 4)
    assert script.digests(killed) == script.digests(whole)
