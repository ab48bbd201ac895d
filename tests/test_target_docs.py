"""docs/targets.md tells what the targets are."""

from pathlib import Path

import pytest

from compress.exporters.targets import Target, load_target, target_names

DOCUMENT = (Path(__file__).parent.parent / "docs" / "targets.md").read_text(encoding="utf-8")


def row_of(target: Target) -> str:
    runtime = f"TensorRT {', '.join(target.tensorrt)}" if target.tensorrt else "ONNX Runtime"
    files = ", ".join(target.precisions) + (f" ({target.int8})" if target.int8 else "")
    opset = str(target.opset)
    if target.typed:
        files, opset = f"{files}, int8 typed", f"{opset}, typed {target.typed.opset}"
    batch = target.max_batch if target.tensorrt else "any"
    return f"| {target.name} | {runtime} | {files} | {opset} | {batch} |"


@pytest.mark.parametrize("name", target_names())
def test_the_table_has_every_target_as_it_is(name: str) -> None:
    assert row_of(load_target(name)) in DOCUMENT


def test_the_table_has_no_other_target() -> None:
    table = DOCUMENT.partition("## The files")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(target_names())
