"""Made-up answers of teachers and students, and what is measured of them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.exporters.targets import Gates
from compress.pipeline import fidelity
from compress.pipeline.adequacy import assess_adequacy
from compress.pipeline.records import ArtifactFidelity, Gate, ProbeAdequacy, ValidateRecord

CLASSES, PROBES = 10, 1000
LIMITS = Gates(min_agreement=0.9, max_mean_kl=0.5, max_size_mb=1)
Logits = NDArray[np.float32]


def probes(n: int = PROBES, classes: int = CLASSES, margin: float = 8) -> tuple[Logits, NDArray[np.int64], Any]:
    """A confident teacher's logits, the classes that the images were made for, and the kinds of the images."""
    targets = np.arange(n) % classes
    logits = np.random.default_rng(0).normal(0, 1, (n, classes)).astype(np.float32)
    logits[np.arange(n), targets] += margin
    return logits, targets, np.where(np.arange(n) < n // 2, "synthesised", "mixed")


def measured(student: Logits, gates: Gates = LIMITS, teacher: Logits | None = None, **other: Any) -> ArtifactFidelity:
    logits, _, kinds = probes()
    sizes = {"size_bytes": 500_000, "latency_ms": 1.5} | other
    return fidelity.measure_artifact(
        "student.int8.onnx",
        "int8",
        teacher_logits=logits if teacher is None else teacher,
        student_logits=student,
        kinds=kinds,
        gates=gates,
        **sizes,
    )


def wrong_on(count: int) -> Logits:
    """The teacher's logits with those of the first `count` images moved by one class."""
    student = probes()[0].copy()
    student[:count] = np.roll(student[:count], 1, axis=1)
    return student


def gate(row: ArtifactFidelity, name: str) -> Gate:
    return next(gate for gate in row.gates if gate.name == name)


def validated(row: ArtifactFidelity, adequacy: ProbeAdequacy) -> ValidateRecord:
    return ValidateRecord(
        probes=PROBES,
        probe_images=PROBES,
        probe_kinds={"synthesised": 500, "mixed": 500},
        adequacy=adequacy,
        ledger=(row,),
        shipped=row.artifact,
        verdict=row.verdict,
        cpu="a CPU",
    )


def assessed(teacher_logits: Logits, targets: NDArray[np.int64], kinds: Any, copied: int = 0) -> ProbeAdequacy:
    return assess_adequacy(teacher_logits, targets, kinds == "synthesised", copied=copied)


ADEQUATE = assessed(*probes())
INADEQUATE = ADEQUATE.model_copy(update={"adequate": False, "reasons": ("the teacher names only 2 of 10 classes",)})
