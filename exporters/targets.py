"""Targets: what a device takes, as data in `configs/targets/*.yaml`."""

import difflib
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import ConfigDict, Field, model_validator

import compress
from compress.pipeline.errors import UsageError
from compress.pipeline.records import Record

Precision = Literal["fp32", "fp16", "int8"]

FIRST_TYPED_ONLY = 11
"""The first TensorRT without precision flags: what is to run in fp16 must be so in the graph."""

FIRST_WITH_BYTES = (8, 5)
"""The first TensorRT that takes images of bytes. Source: github.com/onnx/onnx-tensorrt, release notes of 8.5."""

OF_ENGINES = ("trtexec", "max_batch", "workspace_mib")
"""Fields that say how an engine is built; what ONNX Runtime runs takes batches of any size."""


def version_numbers(version: str) -> tuple[int, ...]:
    """`8.6.2` as (8, 6, 2)."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


class Gates(Record):
    """Limits that the verdict is judged on; None does not judge."""

    model_config = ConfigDict(allow_inf_nan=False, use_attribute_docstrings=True)

    min_agreement: float | None = Field(default=0.9, gt=0, le=1)
    """Smallest share of probes on which the artifact picks the teacher's class."""
    min_class_agreement: float | None = Field(default=None, gt=0, le=1)
    """The same for every class that the teacher names, on the probes where it does."""
    max_mean_kl: float | None = Field(default=None, gt=0)
    """Largest mean Kullback-Leibler divergence from the teacher, in nats."""
    max_size_mb: float | None = Field(default=None, gt=0)
    """Largest file, in 10^6 bytes."""
    max_latency_ms: float | None = Field(default=None, gt=0)
    """Longest median time for one image, in milliseconds, where the model is to run."""


class Typed(Record):
    """A second int8 file that says itself what is fp16, for TensorRT that takes the types of a graph as they stand."""

    opset: int = Field(ge=19)
    """Q/DQ pairs of fp16 came with operator set 19."""
    ir_version: int


class Target(Record):
    """One device and the runtime on it."""

    name: str
    """The name of the YAML file."""
    title: str
    """For people, in one line."""
    runtime: Literal["tensorrt", "onnxruntime"]
    """What runs the model: TensorRT an engine built from the ONNX file, ONNX Runtime the file itself."""
    jetpack: str | None = None
    """JetPack release of a Jetson; None elsewhere."""
    soc: str | None = None
    """What a Jetson's device tree calls its chip, such as `tegra234`; an engine is built on that chip only."""
    tensorrt: tuple[str, ...] = ()
    """Versions that the device may have, oldest first: `8.6` stands for every 8.6.x. The graph suits them all."""
    trtexec: str = "trtexec"
    """Where the device keeps TensorRT's command-line builder."""
    precisions: tuple[Precision, ...]
    """Precisions of the ONNX files, in the order of compactness."""
    engine_fp16: bool = False
    """Whether TensorRT may run in fp16 what the ONNX file leaves in fp32 (`--fp16`); the file itself stays fp32."""
    int8: Literal["s8s8", "u8s8"] | None = None
    """Activations and weights: signed symmetric for TensorRT and Arm, unsigned asymmetric activations for x86."""
    typed: Typed | None = None
    """The typed int8 file beside the others, which TensorRT 11 needs."""
    opset: int
    """ONNX operator set of the other files: the newest that every listed version reads."""
    ir_version: int
    """ONNX file format version."""
    max_batch: int = Field(default=1, ge=1)
    """Largest batch that the engine is built for; it is tuned for one image."""
    workspace_mib: int = Field(default=1024, ge=1)
    """Scratch memory that the engine builder may take, in MiB."""
    gates: Gates = Gates()
    """Limits for this device."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings that this target prefers to the recipe's."""
    note: str = ""
    """What the user of this device should know."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if ("int8" in self.precisions) != (self.int8 is not None):
            raise ValueError("`int8` says how the int8 file is quantized, so the two go together")
        if (self.runtime == "tensorrt") != bool(self.tensorrt):
            raise ValueError("`tensorrt` lists the versions of a TensorRT target, and of no other")
        takes_typed_only = [version for version in self.tensorrt if version_numbers(version)[0] >= FIRST_TYPED_ONLY]
        if bool(takes_typed_only) != (self.typed is not None) or (self.typed and self.int8 != "s8s8"):
            raise ValueError("`typed` is the int8 file for TensorRT 11, so each asks for the other")
        return self

    @property
    def shipped(self) -> Precision:
        """The most compact precision that the target runs: what the gates judge."""
        return self.precisions[-1]

    @property
    def takes_bytes(self) -> bool:
        """Whether all that it may run takes images of bytes."""
        return all(version_numbers(version) >= FIRST_WITH_BYTES for version in self.tensorrt)

    @property
    def timed_on_cpu(self) -> bool:
        """Whether a time on the CPU that runs `compress` stands for the device; of TensorRT only an engine's does."""
        return self.runtime == "onnxruntime"

    def told(self) -> dict[str, Any]:
        """Every field in JSON's types; None for those of engines where no engine is built."""
        fields = self.model_dump(mode="json")
        return fields if self.runtime == "tensorrt" else fields | dict.fromkeys(OF_ENGINES)


def targets_folder() -> Path:
    return Path(compress.__file__).parent / "configs" / "targets"


def target_names() -> list[str]:
    """Names of the targets that ship with the package, sorted."""
    return sorted(path.stem for path in targets_folder().glob("*.yaml"))


def _read(name: str) -> dict[str, Any]:
    """The YAML of a target; one with `alias_of` takes what it does not say itself from the target that it names."""
    data: dict[str, Any] = yaml.safe_load((targets_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    alias_of = data.pop("alias_of", None)
    return {**_read(alias_of), **data} if alias_of else data


@cache
def load_target(name: str) -> Target:
    """The target of that name.

    Raises:
        UsageError: there is no such target; the hint names the nearest.
    """
    if name not in target_names():
        nearest = difflib.get_close_matches(name, target_names(), n=1, cutoff=0.3)
        hint = f"Did you mean '{nearest[0]}'? " if nearest else ""
        raise UsageError(f"There is no target '{name}'.", f"{hint}`compress targets` lists them all.")
    return Target.model_validate({"name": name, **_read(name)})
