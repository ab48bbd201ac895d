"""Targets."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from compress.exporters import targets
from compress.exporters.targets import Gates, Target, Typed, load_target, target_names
from compress.pipeline.errors import UsageError

TENSORRT_TARGETS = [name for name in target_names() if load_target(name).runtime == "tensorrt"]


def test_the_promised_targets_ship() -> None:
    assert target_names() == [
        "cpu-arm64",
        "cpu-x86",
        "jetson",
        "jetson-nano-jp4",
        "jetson-orin-jp5",
        "jetson-orin-jp6",
        "jetson-orin-jp7",
        "jetson-thor-jp7",
        "jetson-tx2-jp4",
        "jetson-xavier-jp5",
        "nvidia-gpu",
        "onnx",
    ]


@pytest.mark.parametrize("name", target_names())
def test_every_shipped_target_loads_and_judges_agreement(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.precisions[0] == "fp32"
    assert target.gates == Gates(min_agreement=0.9)


@pytest.mark.parametrize("name", TENSORRT_TARGETS)
def test_a_graph_for_tensorrt_is_readable_by_its_oldest_version(name: str) -> None:
    # Highest opset: 13 for TensorRT 8.0 to 8.2, 17 from 8.4; IR 7 belongs to opset 13, IR 8 to opset 17.
    target = load_target(name)
    oldest = tuple(int(part) for part in target.tensorrt[0].split("."))
    assert (target.opset, target.ir_version) == ((13, 7) if oldest < (8, 4) else (17, 8))
    assert target.engine_fp16


@pytest.mark.parametrize("name", TENSORRT_TARGETS)
def test_a_target_whose_tensorrt_may_be_11_gets_a_typed_file(name: str) -> None:
    # Q/DQ pairs of fp16 came with operator set 19, which IR version 9 belongs to.
    target = load_target(name)
    newest = int(target.tensorrt[-1].split(".")[0])
    assert target.typed == (Typed(opset=19, ir_version=9) if newest >= 11 else None)


@pytest.mark.parametrize("name", ["jetson-nano-jp4", "jetson-tx2-jp4"])
def test_boards_without_int8_ship_fp32_and_say_why(name: str) -> None:
    target = load_target(name)
    assert target.shipped == "fp32"
    assert target.int8 is None
    assert "int8" in target.note


def test_int8_flavours_follow_the_runtime() -> None:
    flavours = {name: load_target(name).int8 for name in target_names()}
    assert flavours["cpu-x86"] == "u8s8"
    assert {flavours[name] for name in ("jetson", "jetson-xavier-jp5", "nvidia-gpu", "cpu-arm64")} == {"s8s8"}
    assert flavours["onnx"] is None


def test_an_alias_differs_in_name_and_title_only() -> None:
    alias, original = load_target("jetson"), load_target("jetson-orin-jp6")
    assert alias == original.model_copy(update={"name": "jetson", "title": alias.title})
    assert "JetPack 6" in alias.title


def test_an_unknown_target_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="There is no target 'jetson-orin-jp8'") as caught:
        load_target("jetson-orin-jp8")
    assert "Did you mean 'jetson-orin-jp" in caught.value.hint


def test_a_name_cannot_leave_the_folder() -> None:
    with pytest.raises(UsageError, match="There is no target"):
        load_target("../targets/onnx")


def test_unknown_keys_in_a_target_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = (targets.targets_folder() / "onnx.yaml").read_text(encoding="utf-8")
    (tmp_path / "mistyped.yaml").write_text(original + "max_bach: 4\n", encoding="utf-8")
    monkeypatch.setattr(targets, "targets_folder", lambda: tmp_path)
    with pytest.raises(ValidationError, match="max_bach"):
        load_target("mistyped")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"precisions": ("fp32", "int8")}, "`int8` says how"),
        ({"int8": "s8s8"}, "`int8` says how"),
        ({"tensorrt": ("10",)}, "`tensorrt` lists the versions"),
        ({"runtime": "tensorrt"}, "`tensorrt` lists the versions"),
        ({"typed": {"opset": 19, "ir_version": 9}}, "`typed` is the int8 file for TensorRT 11"),
        ({"runtime": "tensorrt", "tensorrt": ("11",)}, "`typed` is the int8 file for TensorRT 11"),
        ({"typed": {"opset": 18, "ir_version": 9}}, "typed.opset"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Target.model_validate(load_target("onnx").model_dump() | changes)


def test_gates_cannot_ask_for_more_than_everything() -> None:
    with pytest.raises(ValidationError, match="min_agreement"):
        Gates(min_agreement=1.01)
