"""What each section of the report says: names and values, as text."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.pipeline.adequacy import MAX_COPIED, MAX_SHIFT, MIN_COVERAGE, half_way
from compress.pipeline.fidelity import find_artifact
from compress.pipeline.proportions import percent
from compress.pipeline.records import (
    ArtifactFidelity,
    DistillRecord,
    EmbeddingRecord,
    Finding,
    LayerCost,
    ProbeAdequacy,
    QuantizeRecord,
    TeacherRecord,
)
from compress.pipeline.report import text
from compress.pipeline.report.data import ReportData

CALIBRATION = (
    "How far such agreement is from that on real images was measured on students that had no part in choosing the probes: on 11 "
    "of a ResNet-56 for CIFAR-10 it was within 2.5 points in half of the cases and within 13.2 in all, on 22 of a small network "
    "on digits within 4.0 and 7.1, and always too low; before, students that had learned for longer were flattered by 2 to 4 "
    "points. Yours may differ."
)
"""Source: benchmarks/README.md, "Do probes tell the truth?"."""

KINDS = {
    "synthesised": "as the generator made them for a class",
    "augmented": "the same, shifted and mirrored",
    "mixed": "of two of them, more of one",
    "between": "of two of them, nearly half and half",
    "boundary": "moved towards the border of two classes",
}
"""What is seen on each kind of probes, in words."""


def place_of_kind(kind: str) -> tuple[int, str]:
    """What kinds are sorted by: as they are told of above, others behind them."""
    return (list(KINDS).index(kind) if kind in KINDS else len(KINDS), kind)


def by_generator(row: ArtifactFidelity) -> tuple[str, ...]:
    """The agreement on the images of each generator."""
    return tuple(f"{text.share(part)} ({text.interval(part)})" for part in row.agreement_by_generator)


MOST_NAMES = 12
"""Names listed in a sentence before the rest is only counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading, a table of names and values, and lists under titles of their own."""

    heading: str
    rows: tuple[tuple[str, str], ...]
    lists: tuple[tuple[str, tuple[str, ...]], ...] = ()


def headline(data: ReportData) -> Section:
    """What was made of what, for whom."""
    shipped = find_artifact(data.validation.ledger, data.validation.shipped)
    float_bytes = 4 * data.teacher.parameters
    return Section(
        heading="",
        rows=(
            ("Target", data.target.title),
            ("Teacher", f"{text.size(float_bytes)} in float32"),
            ("Shipped", f"{text.size(shipped.size_bytes)} in {shipped.precision}"),
            ("Smaller", f"{text.significant(float_bytes / shipped.size_bytes)} times"),
        ),
    )


def probes(adequacy: ProbeAdequacy) -> Section:
    bar = percent(half_way(adequacy.num_classes))
    return Section(
        heading="Can the probes carry a verdict?",
        rows=(
            ("Adequate", "yes" if adequacy.adequate else "no"),
            (
                "Classes that the teacher names",
                f"{text.count(adequacy.classes_seen)} of {adequacy.num_classes:,}; {percent(MIN_COVERAGE)} are needed",
            ),
            ("Share of the most frequent class", f"{percent(adequacy.largest_class_share)}, {bar} at most"),
            ("Teacher's median confidence", f"{percent(adequacy.median_confidence)}, {bar} at least"),
            ("Images that the teacher took for the class they were made for", _recognised(adequacy, bar)),
            ("Distance from the teacher's training, in standard deviations", _shift(adequacy.batch_norm_shift)),
            ("Like another one that was made for a class", f"{text.count(adequacy.repeated)}; half of them at most"),
            (
                "Like an image that the student learned from",
                f"{text.count(adequacy.copied)}; {percent(MAX_COPIED)} of them at most",
            ),
        ),
        lists=_lists({"Why not": adequacy.reasons}),
    )


def _shift(value: float | None) -> str:
    return "no batch norm tells it" if value is None else f"{text.significant(value)}, {MAX_SHIFT} at most"


def _recognised(adequacy: ProbeAdequacy, bar: str) -> str:
    part = adequacy.on_target
    shown = "only they are shown" if adequacy.unrecognised else f"below {bar}, the others are shown, too"
    return f"{text.share(part)} of {part.total:,}; {shown}"


def distillation(record: DistillRecord, teacher: TeacherRecord) -> Section:
    ratio = text.significant(teacher.parameters / record.parameters)
    return Section(
        heading="Distillation",
        rows=(
            ("Student", record.student),
            ("Parameters", f"{record.parameters:,}, {ratio} times fewer than the teacher"),
            ("Starts from", _origin(record)),
            ("Rounds", f"{record.rounds:,} after {record.warmup_rounds:,} of warm-up"),
            ("Student steps", text.count(record.kd_steps)),
            ("Synthetic images", text.count(record.pool_images)),
            ("Agreement on the monitor probes", percent(record.monitor_agreement)),
        ),
        lists=_lists({"Notes": record.notes}),
    )


def _origin(record: DistillRecord) -> str:
    if record.kept_blocks is None:
        return "the teacher's own layers" if record.inherited else "random weights"
    stages = "; ".join(", ".join(str(index + 1) for index in stage) for stage in record.kept_blocks)
    return f"the teacher's own layers, of its stages the blocks {stages}"


def background(data: ReportData) -> list[Section]:
    """Where it comes from and what it ran with."""
    total = text.duration(sum(data.timings.values()))
    timings = {stage: text.duration(seconds) for stage, seconds in data.timings.items()} | {"Total": total}
    return [
        _teacher(data.teacher),
        _class_names(data.embedding),
        _quantization(data.quantize),
        Section(heading="Settings", rows=tuple(flattened(data.settings))),
        Section(heading="Timings", rows=tuple(timings.items())),
        Section(heading="Versions", rows=(*data.versions.items(), ("Seed", str(data.seed)))),
    ]


def _teacher(teacher: TeacherRecord) -> Section:
    image = teacher.input
    return Section(
        heading="Teacher",
        rows=(
            ("File", teacher.file_name),
            ("SHA-256", teacher.sha256),
            ("Format", teacher.format),
            ("Architecture", f"{teacher.name}: {teacher.architecture}"),
            ("Input", f"{image.channels} x {image.height} x {image.width}"),
            ("Mean", _numbers(image.mean)),
            ("Standard deviation", _numbers(image.std)),
            ("Input according to", image.source or text.MISSING),
            ("Classes", text.count(teacher.num_classes)),
            ("Parameters", text.count(teacher.parameters)),
            ("Output", teacher.output),
            ("Batch-norm layers", text.count(teacher.batch_norm_layers)),
        ),
        lists=_lists({"Why this architecture": teacher.reasons, "Diagnosis": _diagnosis(teacher.findings)}),
    )


def _diagnosis(findings: tuple[Finding, ...]) -> tuple[str, ...]:
    return tuple(f"{finding.severity}, {finding.topic}: {finding}" for finding in findings)


def _class_names(embedding: EmbeddingRecord) -> Section:
    closest = text.MISSING
    if embedding.closest_pair is not None:
        one, other, cosine = embedding.closest_pair
        closest = f"{one} and {other} (cosine {cosine:.3f})"
    return Section(
        heading="Class names as text",
        rows=(
            ("Text encoder", embedding.encoder),
            ("SHA-256 of the encoder", embedding.encoder_sha256),
            ("Prompt", embedding.prompt),
            ("Dimension", text.count(embedding.dimension)),
            ("Most alike", closest),
        ),
        lists=_lists({"Diagnosis": _diagnosis(embedding.findings)}),
    )


def _quantization(record: QuantizeRecord | None) -> Section:
    if record is None:
        return Section(heading="Quantization", rows=(("Scheme", "none: the target takes no int8 model"),))
    return Section(
        heading="Quantization",
        rows=(
            ("Scheme", record.scheme),
            ("Quantized layers", named(record.quantized_layers)),
            ("Float layers", named(record.float_layers)),
            ("Of these, left so for fidelity", named(record.left_float)),
            (
                f"Agreement of the float student, on {record.held_out:,} held-out images",
                percent(record.agreement_float),
            ),
            ("Agreement after calibration", percent(record.agreement_calibrated)),
            (_after_training(record), percent(record.agreement)),
        ),
        lists=_lists({"What rounding one layer alone does to the answers": _costs(record.layer_costs)}),
    )


def _after_training(record: QuantizeRecord) -> str:
    kept = ", kept since its KL divergence is less" if record.tail_steps else ""
    return f"Agreement after {record.tail_steps:,} steps of quantization-aware training{kept}"


def _costs(costs: tuple[LayerCost, ...]) -> tuple[str, ...]:
    shown = tuple(
        f"{cost.layer}: {cost.sqnr_db:.1f} dB of signal to noise, {percent(cost.agreement)} of the classes stay"
        for cost in costs[:MOST_NAMES]
    )
    rest = len(costs) - len(shown)
    return (*shown, f"{rest:,} more, each of less noise") if rest > 0 else shown


def named(names: tuple[str, ...] | list[str]) -> str:
    """`none`, or how many and which, the rest of a long list only counted."""
    if not names:
        return "none"
    shown = ", ".join(names[:MOST_NAMES])
    rest = len(names) - MOST_NAMES
    return f"{len(names):,}: {shown}" + (f" and {rest:,} more" if rest > 0 else "")


def flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as `distill.kd_steps` and their values, the way that `--set` takes them."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", worded(value)


def worded(value: Any) -> str:
    """A setting as `--set` takes it; of a long list how many values it has."""
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > MOST_NAMES:
        return f"{len(value):,} values, see settings.yaml"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _lists(lists: Mapping[str, tuple[str, ...]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((title, items) for title, items in lists.items() if items)
