"""What the README teaches is run as it stands there, on the example's teacher and with the smallest recipe."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from compress.exporters.targets import target_names
from compress.pipeline import errors
from tests.command import compress, files_in

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DEMO = ROOT / "examples" / "digits"


def commands(pattern: str) -> list[list[str]]:
    """Words of the README's commands that begin so, comments left out."""
    lines = (line.strip().removeprefix("$ ") for line in README.splitlines() if line.startswith(("    ", "$ ")))
    return [shlex.split(line, comments=True) for line in lines if re.match(pattern, line)]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the checkout, and like one with a teacher of one's own; seconds instead of minutes."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "teacher.pt").symlink_to(DEMO / "teacher.pt")
    (tmp_path / "labels.txt").symlink_to(DEMO / "labels.txt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESS_RECIPE", "smoke")
    return tmp_path


def test_the_demo_delivers_every_file_that_the_readme_lists(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (demo,) = commands("compress examples")
    assert compress(*demo[1:]).exit_code in {0, 4}
    (evaluate,) = commands("python examples")
    monkeypatch.setattr(sys, "argv", evaluate[1:])
    monkeypatch.syspath_prepend(str(DEMO))
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(evaluate[1], run_name="__main__")
    section = README.partition("## What you get")[2].partition("## ")[0]
    listed = set(re.findall(r"\b[\w.-]+\.(?:md|onnx|html|json|xml|safetensors|npz|txt|yaml|sh|py|png)\b", section))
    listed |= {"report.md", "report.json", "junit.xml"}
    delivered = {Path(name).name for name in files_in(checkout / demo[-1]) if not name.startswith("work/")}
    assert listed <= delivered
    assert delivered - listed <= {".compress", "replay.json"}


def test_the_demo_command_is_the_one_that_make_runs() -> None:
    (demo,) = commands("compress examples")
    assert shlex.join(demo) in (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(BIN)/", "")


@pytest.mark.parametrize("words", commands("compress (inspect|teacher)"), ids=" ".join)
def test_the_commands_for_a_teacher_of_ones_own_run(words: list[str], checkout: Path) -> None:
    if "--recipe" in words:  # A quarter of an hour; its plan is what can be tried in seconds.
        words = [*words, "--dry-run"]
    result = compress(*words[1:])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("option", sorted(set(re.findall(r"`(--[a-z-]+)", README))))
def test_every_option_that_is_named_exists(option: str) -> None:
    words = [*commands("docker"), ["--build-arg", "--network", "--user"]]
    known = compress("--help").output + compress("lint", "--help").output
    assert option in known or any(option in line for line in words)


def test_the_exit_codes_are_those_of_the_errors() -> None:
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert table == {0} | {value.exit_code for value in classes if issubclass(value, errors.CompressError)}


def test_the_targets_that_are_named_exist() -> None:
    assert set(re.findall(r"--target ([a-z][\w-]*)", README)) <= set(target_names())


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README + (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
