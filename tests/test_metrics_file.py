import json
import re
from pathlib import Path

import pytest

from compress.pipeline.distillation.metrics_file import METRICS_FILE, append_metrics, metrics_line, restart_metrics
from compress.pipeline.records import HistoryPoint


def point(number: int, **changes: float) -> HistoryPoint:
    usual = {"kd_steps": 0, "pool_images": 12, "synthesis_loss": 2.5, "kd_loss": float("nan"), "seconds": 1.5}
    return HistoryPoint.model_validate({"round": number, "monitor_agreement": None, **usual, **changes})


def rounds(folder: Path) -> list[int]:
    return [json.loads(line)["round"] for line in (folder / METRICS_FILE).read_text().splitlines()]


def test_a_round_is_one_line_of_strict_json_with_null_for_what_is_not_there() -> None:
    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    line = metrics_line(point(3, batch_norm_loss=float("inf"), one_hot_loss=0.25))
    assert line.count("\n") == 1 and line.endswith("\n")
    content = json.loads(line, parse_constant=refuse)
    assert (content["round"], content["synthesis_loss"], content["one_hot_loss"]) == (3, 2.5, 0.25)
    assert [content[name] for name in ("kd_loss", "monitor_agreement", "batch_norm_loss")] == [None, None, None]


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path: Path) -> None:
    restart_metrics(tmp_path, [])
    with (tmp_path / METRICS_FILE).open() as follower:  # as `tail -f` does
        for number in range(3):
            append_metrics(tmp_path, point(number))
            assert json.loads(follower.readline())["round"] == number
            assert follower.readline() == ""


@pytest.mark.parametrize("damage", [b"", b'{"round": 1, "kd_st', b"\xff\n"])
def test_a_continued_run_has_every_round_of_its_history_once_whatever_was_left(tmp_path: Path, damage: bytes) -> None:
    for number in range(4):
        append_metrics(tmp_path, point(number))
    with (tmp_path / METRICS_FILE).open("ab") as file:
        file.write(damage)
    restart_metrics(tmp_path, [point(0), point(1)])
    append_metrics(tmp_path, point(2))
    assert rounds(tmp_path) == [0, 1, 2]


def test_every_field_is_explained() -> None:
    page = (Path(__file__).parent.parent / "docs" / "watching.md").read_text(encoding="utf-8")
    explained = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)))
    assert explained == list(HistoryPoint.model_fields)
