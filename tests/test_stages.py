import fcntl
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from compress.pipeline import stages
from compress.pipeline.errors import UsageError
from compress.pipeline.records import Record
from compress.pipeline.stages import INPUTS_FILE, SECONDS_FILE, STAGE_FILE, StageResult, exclusive, run_stage

RESUME = ("step-*",)


class Sum(Record):
    """What the stage under test hands on."""

    total: int


class Adder:
    """A stage that adds numbers up, writes the sum, and counts how often it ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "1-sum"
        self.runs = 0

    def produce(self, folder: Path) -> Sum:
        self.runs += 1
        (folder / "parts").mkdir()
        (folder / "parts" / "sum.txt").write_text("6")
        return Sum(total=6)

    def run(self, inputs: object = (1, 2, 3), *, resume_files: Sequence[str] = ()) -> StageResult:
        return run_stage(self.folder, {"numbers": inputs}, Sum, self.produce, resume_files=resume_files)


@pytest.fixture
def adder(tmp_path: Path) -> Adder:
    return Adder(tmp_path)


def test_what_other_inputs_left_unfinished_is_thrown_away_and_what_changed_is_said(tmp_path: Path) -> None:
    told: list[str] = []

    def interrupted(folder: Path) -> Sum:
        (folder / "step-1").touch()
        (folder / SECONDS_FILE).write_text("2.5")
        raise KeyboardInterrupt

    def run(produce: Callable[[Path], Sum], **inputs: object) -> None:
        run_stage(tmp_path / "1-sum", inputs, Sum, produce, resume_files=RESUME, on_start_over=told.append)

    with pytest.raises(KeyboardInterrupt):
        run(interrupted, compute=["cpu", 2], settings={"rate": 1, "steps": 3})
    run(Adder(tmp_path).produce, compute=["cpu", 4], settings={"rate": 1, "steps": 5})
    assert told == ["compute, steps"]
    assert not list(tmp_path.rglob("step-1"))


def crashing(folder: Path) -> Sum:
    (folder / "half.txt").write_text("hal")
    raise RuntimeError("out of luck")


# Reuse


def test_a_finished_stage_is_not_run_again(adder: Adder) -> None:
    first, second = adder.run(), adder.run()
    assert (first.reused, second.reused, adder.runs) == (False, True, 1)
    assert first.record == second.record == Sum(total=6)
    assert first.seconds == second.seconds
    assert (second.folder / "parts" / "sum.txt").read_text() == "6"
    assert [path.name for path in adder.folder.parent.iterdir()] == ["1-sum"]


def test_a_stage_with_other_inputs_runs_again_and_forgets_the_old_files(adder: Adder) -> None:
    adder.run()
    (adder.folder / "stray.txt").touch()
    assert not adder.run((1, 2, 4)).reused
    assert adder.runs == 2
    assert not (adder.folder / "stray.txt").exists()


def test_the_order_of_inputs_does_not_matter_but_their_names_do(tmp_path: Path) -> None:
    def run(inputs: dict[str, int]) -> bool:
        return run_stage(tmp_path / "1-sum", inputs, Sum, lambda _: Sum(total=3)).reused

    assert [run({"a": 1, "b": 2}), run({"b": 2, "a": 1}), run({"a": 2, "b": 1})] == [False, True, False]


def flip_a_bit(folder: Path) -> None:
    (folder / "parts" / "sum.txt").write_text("7")


def lose_a_file(folder: Path) -> None:
    (folder / "parts" / "sum.txt").unlink()


def lose_the_record(folder: Path) -> None:
    (folder / STAGE_FILE).unlink()


def rewrite(text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / STAGE_FILE).write_text(text)

    return damage


def forget(key: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / STAGE_FILE).read_text())
        del content[key]
        (folder / STAGE_FILE).write_text(json.dumps(content))

    return damage


def change_the_record(folder: Path) -> None:
    content = json.loads((folder / STAGE_FILE).read_text())
    (folder / STAGE_FILE).write_text(json.dumps(content | {"record": {"product": 6}}))


@pytest.mark.parametrize(
    "damage",
    [
        *(flip_a_bit, lose_a_file, lose_the_record, change_the_record),
        *(rewrite(text) for text in ("", "{", "[]", "null", "7", "{}")),
        *(forget(key) for key in ("inputs", "files", "record")),
    ],
)
def test_a_damaged_stage_runs_again(adder: Adder, damage: Callable[[Path], None]) -> None:
    adder.run()
    damage(adder.folder)
    again = adder.run()
    assert (again.reused, again.record, adder.runs) == (False, Sum(total=6), 2)
    assert adder.run().reused


def test_changed_code_runs_every_stage_again(adder: Adder, monkeypatch: pytest.MonkeyPatch) -> None:
    adder.run()
    monkeypatch.setattr(stages, "code_version", lambda: "another")
    assert not adder.run().reused


def test_the_code_version_is_a_hash_of_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version() -> str:
        return stages.code_version.__wrapped__()

    for name in ("__init__.py", "pipeline/run.py", "exporters/page.j2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("first")
    monkeypatch.setattr("compress.__file__", str(tmp_path / "__init__.py"))
    first = version()
    (tmp_path / "pipeline" / "notes.txt").write_text("no source")
    assert version() == first
    (tmp_path / "exporters" / "page.j2").write_text("second")
    second = version()
    (tmp_path / "pipeline" / "run.py").rename(tmp_path / "pipeline" / "walk.py")
    assert len({first, second, version()}) == 3


# Crashes


def test_a_crash_leaves_no_stage_and_the_next_run_starts_afresh(adder: Adder) -> None:
    with pytest.raises(RuntimeError, match="out of luck"):
        run_stage(adder.folder, {"numbers": (1, 2, 3)}, Sum, crashing)
    assert not adder.folder.exists()
    assert not adder.run().reused
    assert not (adder.folder / "half.txt").exists()
    assert [path.name for path in adder.folder.parent.iterdir()] == ["1-sum"]


def test_a_crash_keeps_what_an_earlier_run_finished(adder: Adder) -> None:
    adder.run()
    with pytest.raises(RuntimeError, match="out of luck"):
        run_stage(adder.folder, {"numbers": (1, 2, 4)}, Sum, crashing)
    assert adder.run().reused


@pytest.mark.parametrize(("inputs", "left"), [((1, 2, 3), True), ((1, 2, 4), False)])
def test_a_resumable_stage_continues_with_the_same_inputs_only(
    adder: Adder, inputs: tuple[int, ...], left: bool
) -> None:
    with pytest.raises(RuntimeError, match="out of luck"):
        run_stage(adder.folder, {"numbers": (1, 2, 3)}, Sum, crashing, resume_files=RESUME)
    adder.run(inputs, resume_files=RESUME)
    assert (adder.folder / "half.txt").exists() is left


def test_a_stage_that_cannot_continue_starts_afresh(adder: Adder) -> None:
    with pytest.raises(RuntimeError, match="out of luck"):
        run_stage(adder.folder, {"numbers": (1, 2, 3)}, Sum, crashing, resume_files=RESUME)
    adder.run()
    assert not (adder.folder / "half.txt").exists()


def test_a_partial_folder_of_unknown_origin_is_thrown_away(adder: Adder) -> None:
    partial = adder.folder.with_name("1-sum.partial")
    partial.mkdir()
    (partial / "half.txt").touch()
    adder.run(resume_files=RESUME)
    assert not (adder.folder / "half.txt").exists()


def test_the_finished_folder_holds_no_scaffolding(adder: Adder) -> None:
    adder.run(resume_files=RESUME)
    assert {path.name for path in adder.folder.iterdir()} == {STAGE_FILE, "parts"}
    assert not (adder.folder / INPUTS_FILE).exists()


def test_what_only_serves_to_continue_is_removed_when_the_stage_is_whole(adder: Adder) -> None:
    def produce(folder: Path) -> Sum:
        (folder / "step-1").write_text("1")
        (folder / SECONDS_FILE).write_text("3.0")
        (folder / "sum.txt").write_text("6")
        return Sum(total=6)

    run_stage(adder.folder, {}, Sum, produce, resume_files=RESUME)
    assert {path.name for path in adder.folder.iterdir()} == {STAGE_FILE, "sum.txt"}
    assert run_stage(adder.folder, {}, Sum, produce, resume_files=RESUME).reused


def test_a_stop_while_the_files_are_hashed_loses_nothing(adder: Adder, monkeypatch: pytest.MonkeyPatch) -> None:
    def produce(folder: Path) -> Sum:
        seen.append((folder / "step-1").exists())
        (folder / "step-1").write_text("1")
        return Sum(total=6)

    def interrupted(_: Path) -> str:
        raise KeyboardInterrupt

    seen: list[bool] = []
    with monkeypatch.context() as patch:
        patch.setattr(stages, "_files", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_stage(adder.folder, {}, Sum, produce, resume_files=RESUME)
    run_stage(adder.folder, {}, Sum, produce, resume_files=RESUME)
    assert seen == [False, True]


def test_other_versions_of_packages_reuse_nothing(adder: Adder, monkeypatch: pytest.MonkeyPatch) -> None:
    adder.run()
    monkeypatch.setattr(stages, "package_versions", lambda: {"torch": "99.0"})
    assert not adder.run().reused


def test_seconds_of_interrupted_runs_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 200.0, 202.5])
    monkeypatch.setattr("compress.pipeline.stages.time.monotonic", lambda: next(clock))

    def interrupted(folder: Path) -> Sum:
        (folder / SECONDS_FILE).write_text("30.25")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path / "1-sum", {}, Sum, interrupted, resume_files=RESUME)
    result = run_stage(tmp_path / "1-sum", {}, Sum, lambda _: Sum(total=6), resume_files=RESUME)
    # 30.25 before, and 202.5 - 200 now
    assert result.seconds == 32.75


# The lock

HOLDER = """
import sys
from pathlib import Path
from compress.pipeline.stages import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    work = tmp_path / "out" / "work"
    command = [sys.executable, "-c", HOLDER, str(work)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="Another run is writing into") as caught, exclusive(work):
            pass
        assert str(tmp_path / "out") in caught.value.message
        assert "-o" in caught.value.hint
        holder.kill()
    with exclusive(work):
        pass


def test_a_lock_file_that_nobody_holds_does_not_block(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("left by a crash")
    with exclusive(tmp_path):
        pass


def test_the_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), exclusive(tmp_path):
        raise RuntimeError
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
