"""Which operators TensorRT takes, and since which version: data in `configs/tensorrt_operators.yaml`."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import yaml

import compress
from compress.exporters.targets import Target, version_numbers


@cache
def first_versions() -> Mapping[str, str]:
    """The version of TensorRT that each operator came with, as far back as 8.0."""
    path = Path(compress.__file__).parent / "configs" / "tensorrt_operators.yaml"
    listed: dict[str, list[str]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {operator: version for version, operators in listed.items() for operator in operators}


def lacking(operator: str, target: Target) -> str | None:
    """Which TensorRT of the target lacks the operator, and since when others have it, in words; None if all take it."""
    first = first_versions().get(operator)
    if first is None:
        return f"TensorRT has no operator {operator}."
    oldest = target.tensorrt[0]
    # `10` stands for every 10.x, of which the first has to do.
    if (*version_numbers(oldest), 0)[:2] >= version_numbers(first):
        return None
    return f"TensorRT has {operator} from {first} on, and {target.name} may have {oldest}."
