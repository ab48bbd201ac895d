"""What the stages of one command share: its inputs, its folder, and live models made from the files of earlier stages."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file
from torch import Tensor, fx

from compress.exporters.bundle import sha256_of
from compress.exporters.qdq import insert_fake_quantization
from compress.exporters.targets import Target, load_target
from compress.pipeline.device import Compute, choose_compute
from compress.pipeline.distillation.stage import PROBES_FILE, STUDENT_FILE
from compress.pipeline.lte import Encoder, find_encoder
from compress.pipeline.networks import build
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.probes import Probes
from compress.pipeline.progress import Progress
from compress.pipeline.records import DistillRecord, QuantizeRecord, Record
from compress.pipeline.settings import Settings
from compress.pipeline.stages import StageResult, run_stage
from compress.pipeline.teacher import Teacher, open_teacher

RecordT = TypeVar("RecordT", bound=Record)

STAGES = ("intake", "embed", "distill", "quantize", "export", "validate", "package")

EMBEDDINGS_FILE = "lte.safetensors"
QUANTIZED_FILE = "student.int8.safetensors"
COMMAND_FILE = "command.json"
"""In the work folder: where the inputs of the last run were."""


class Workspace:
    """One command on one output folder."""

    def __init__(self, checkpoint: Path, folder: Path, settings: Settings, progress: Progress) -> None:
        self.started = time.monotonic()
        self.checkpoint, self.folder = checkpoint, folder
        self.settings, self.progress = settings, progress
        self.target: Target = load_target(settings.target)
        self.compute: Compute = choose_compute(settings)
        embed = settings.embed
        self.encoder: Encoder = find_encoder(embed.text_encoder, allow_download=embed.allow_download)
        self.results: dict[str, StageResult] = {}

    def stage(
        self,
        name: str,
        inputs: Mapping[str, Any],
        record_type: type[RecordT],
        produce: Callable[[Path], RecordT],
        summary: Callable[[RecordT], str],
        *,
        resume_files: Sequence[str] = (),
        on_start_over: Callable[[str], None] = lambda _: None,
    ) -> RecordT:
        """Announce a stage, run it unless its folder holds what these inputs give, and say in one line what came out."""
        number = STAGES.index(name) + 1
        self.progress.stage_started(number, len(STAGES), name)
        folder = self.folder / "work" / f"{number}-{name}"
        result = run_stage(folder, inputs, record_type, produce, resume_files=resume_files, on_start_over=on_start_over)
        self.results[name] = result
        record: RecordT = result.record
        self.progress.stage_finished(summary(record), reused=result.reused, seconds=result.seconds)
        return record

    def file(self, stage: str, name: str) -> Path:
        """A file that an earlier stage wrote."""
        return self.results[stage].folder / name

    def sha256(self, stage: str, name: str) -> str:
        """SHA-256 of a file that an earlier stage wrote."""
        return sha256_of(self.file(stage, name))

    @cached_property
    def teacher(self) -> Teacher:
        return open_teacher(self.checkpoint, **dict(self.settings.teacher))

    @property
    def probes_file(self) -> Path:
        """The probes of distillation, or those with which validation went on where more were asked for."""
        grown = self.results["validate"].folder / PROBES_FILE if "validate" in self.results else None
        return grown if grown is not None and grown.exists() else self.file("distill", PROBES_FILE)

    @property
    def probes(self) -> Probes:
        return Probes.load(self.probes_file)

    def embeddings(self) -> Tensor:
        """Label-text embeddings `[num_classes, dimension]`."""
        return load_file(self.file("embed", EMBEDDINGS_FILE))["embeddings"]

    def student(self, record: DistillRecord, weights: str = STUDENT_FILE) -> Normalised:
        """The distilled student with one of its files of weights, on the CPU, in eval mode."""
        teacher_input = self.teacher.record.input
        student = Normalised(build(record.spec), teacher_input.mean, teacher_input.std)
        student.load_state_dict(load_file(self.file("distill", weights)))
        return student.eval()

    def quantized_student(self, record: DistillRecord) -> fx.GraphModule:
        """The fake-quantized student, on the CPU, in eval mode."""
        scheme = self.target.int8
        if scheme is None:
            raise ValueError(f"{self.target.name} has no int8")
        quantized: QuantizeRecord = self.results["quantize"].record
        exclude = (*self.settings.quantize.exclude, *quantized.left_float)
        module = insert_fake_quantization(self.student(record), scheme, exclude, runtime=self.target.runtime)
        module.load_state_dict(load_file(self.file("quantize", QUANTIZED_FILE)))
        return module.eval()

    def elapsed(self) -> float:
        """Seconds since the command began."""
        return time.monotonic() - self.started
