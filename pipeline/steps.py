"""The stages, each a function: what it reads, what it writes into its folder, and the record that it hands on."""

from itertools import count
from pathlib import Path

import torch

from compress.exporters.camera_input import described
from compress.exporters.deploy import PLAN_NAME, write_deploy
from compress.exporters.onnx_graph import export_onnx
from compress.exporters.runners import EngineRunner, Runner, TorchRunner
from compress.exporters.targets import Precision, Typed
from compress.exporters.tensorrt_engine import build_engine, find_tensorrt
from compress.pipeline.device import cpu_name, derived_seed
from compress.pipeline.distillation.checkpoint import RESUME_FILES
from compress.pipeline.distillation.stage import LAST_FILE, POOL_FILE, PROBES_FILE, STUDENT_FILE
from compress.pipeline.distillation.stage import distill as distill_student
from compress.pipeline.distillation.tensorboard import FOLDER as TENSORBOARD_FOLDER
from compress.pipeline.distillation.tensorboard import Curves
from compress.pipeline.errors import CompressError
from compress.pipeline.holdout import Holdout, measure
from compress.pipeline.lte import embed_labels
from compress.pipeline.parallel.follow import Work, hand_out, identity_of
from compress.pipeline.probes import Probes, batches_for, views_of, with_more
from compress.pipeline.quantize import quantize as quantize_student
from compress.pipeline.records import (
    DistillRecord,
    EmbeddingRecord,
    ExportedGraph,
    ExportRecord,
    Finding,
    HoldoutRecord,
    QuantizeRecord,
    TeacherCost,
    TeacherRecord,
    ValidateRecord,
)
from compress.pipeline.stages import code_version
from compress.pipeline.students import StudentPlan
from compress.pipeline.synthesis.pool import ImagePool, as_float
from compress.pipeline.teacher import Teacher
from compress.pipeline.tensor_files import write_tensors
from compress.pipeline.validation import (
    Examination,
    concluded,
    decisive,
    examine_files,
    fidelity_of,
    latency_of,
    made_from,
    origin_of,
    runner_of,
    undelivered,
)
from compress.pipeline.workspace import (
    EMBEDDINGS_FILE,
    QUANTIZED_FILE,
    Workspace,
)

PARITY_IMAGES = 16
"""Probes on which an exported graph must answer as torch does."""


def intake(space: Workspace) -> TeacherRecord:
    """Checkpoint to teacher description."""
    record = space.teacher.record
    inputs = {"checkpoint": record.identity, "settings": space.settings.teacher.model_dump(mode="json")}

    def summary(record: TeacherRecord) -> str:
        return f"{record.architecture}: {record.parameters:,} parameters, {record.num_classes} classes"

    space.stage("intake", inputs, TeacherRecord, lambda _: record, summary)
    _tell(space, record.findings)
    return record


def embed(space: Workspace, labels: tuple[str, ...]) -> EmbeddingRecord:
    """Class names to label-text embeddings."""
    asked = space.settings.embed
    carried = space.teacher.record.labels
    inputs = {
        "labels": labels,
        "carried": carried,
        "encoder": space.encoder.sha256,
        "prompt": asked.prompt,
        "synonyms": asked.synonyms,
    }

    def produce(folder: Path) -> EmbeddingRecord:
        embeddings, record = embed_labels(
            labels,
            encoder=asked.text_encoder,
            prompt=asked.prompt,
            synonyms=asked.synonyms,
            allow_download=asked.allow_download,
            carried=carried,
        )
        write_tensors(folder / EMBEDDINGS_FILE, {"embeddings": torch.from_numpy(embeddings)})
        return record

    def summary(record: EmbeddingRecord) -> str:
        return f"{len(labels)} class names through {record.encoder}, {record.dimension} values each"

    record = space.stage("embed", inputs, EmbeddingRecord, produce, summary)
    _tell(space, record.findings)
    return record


def _tell(space: Workspace, findings: tuple[Finding, ...]) -> None:
    """What may cost fidelity is said while there is time to stop; the rest is in the report."""
    for finding in findings:
        if finding.severity != "note":
            space.progress.note(str(finding), finding.severity)


def distill(space: Workspace, plan: StudentPlan) -> DistillRecord:
    """Teacher and embeddings to student, pool and probes."""
    settings, compute, teacher = space.settings, space.compute, space.teacher.record
    inputs = {
        "teacher": teacher.identity,
        "input": teacher.input.model_dump(mode="json", exclude={"source"}),
        "embeddings": space.sha256("embed", EMBEDDINGS_FILE),
        "student": [plan.name, plan.spec.model_dump(mode="json")],
        "settings": settings.model_dump(
            mode="json",
            include={"synthesis", "distill", "probes", "seed", "budget_seconds"},
            exclude={"distill": {"checkpoint_seconds"}, "probes": {"least"}},
        ),
        "compute": [str(compute.device), compute.bf16, torch.get_num_threads(), compute.world.size],
    }

    remarks: list[str] = []

    def start_over(changed: str) -> None:
        remarks.append(f"What an interrupted run had done cannot be continued, since other than then are: {changed}.")
        space.progress.note(remarks[-1], "warning")

    def produce(folder: Path) -> DistillRecord:
        left = None if settings.budget_seconds is None else max(settings.budget_seconds - space.elapsed(), 1.0)
        work = Work(
            teacher=identity_of(space.teacher),
            settings=settings,
            device=compute.device.type,
            bf16=compute.bf16,
            code=code_version(),
            budget_seconds=left,
        )
        hand_out(compute.world, work, space.embeddings())
        curves = Curves(space.folder / "work" / TENSORBOARD_FOLDER) if settings.tensorboard else None
        try:
            return distill_student(
                *(space.teacher, space.embeddings(), plan, settings, compute, folder, space.progress, left),
                curves=curves,
                remarks=tuple(remarks),
            )
        finally:
            if curves:
                curves.close()

    def summary(record: DistillRecord) -> str:
        origin = "from the teacher's blocks" if record.inherited else "from random weights"
        return (
            f"{record.student} {origin}: {record.parameters:,} parameters, "
            f"{record.kd_steps:,} steps on {record.pool_images:,} synthetic images"
        )

    record = space.stage(
        "distill", inputs, DistillRecord, produce, summary, resume_files=RESUME_FILES, on_start_over=start_over
    )
    for note in record.notes:
        space.progress.note(note)
    return record


def quantize(space: Workspace, student: DistillRecord) -> QuantizeRecord | None:
    """Student to fake-quantized student; None for a target without int8."""
    target, settings = space.target, space.settings
    if target.int8 is None:
        return None
    scheme = target.int8
    inputs = {
        "student": space.sha256("distill", STUDENT_FILE),
        "pool": space.sha256("distill", POOL_FILE),
        "teacher": space.teacher.record.identity,
        "scheme": [scheme, target.runtime],
        "settings": settings.model_dump(mode="json", include={"quantize", "seed"}),
        "min_agreement": settings.gates.min_agreement,
    }

    def produce(folder: Path) -> QuantizeRecord:
        module, record = quantize_student(
            space.student(student),
            # The layout decides the last bits: it must not depend on whether distillation has just run.
            space.teacher.to(torch.device("cpu"), torch.channels_last).logits,
            ImagePool.load(space.file("distill", POOL_FILE)).images,
            settings.quantize,
            scheme,
            seed=derived_seed(settings.seed, "quantize"),
            runtime=target.runtime,
            min_agreement=settings.gates.min_agreement,
            on_progress=space.progress.advance,
        )
        write_tensors(folder / QUANTIZED_FILE, module.state_dict())
        return record

    def summary(record: QuantizeRecord) -> str:
        tail = f"{record.tail_steps} steps of training" if record.tail_steps else "training did not better it"
        left = f", {len(record.left_float)} left in floating point" if record.left_float else ""
        return f"int8 {record.scheme} in {len(record.quantized_layers)} layers{left}, calibrated; {tail}"

    return space.stage("quantize", inputs, QuantizeRecord, produce, summary)


def engine_builder() -> list[str | None]:
    """What decides on whether an engine can be built here, and for what: TensorRT's version and the GPU."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return [getattr(find_tensorrt(), "__version__", None), gpu]


def export(space: Workspace, student: DistillRecord, labels: tuple[str, ...]) -> ExportRecord:
    """Students to the graphs that the target takes, and to the engine where it can be built."""
    target = space.target
    dynamic_batch, input_form = space.settings.dynamic_batch, space.settings.input_form
    student_sha256 = space.sha256("distill", STUDENT_FILE)
    inputs = {
        "student": student_sha256,
        "quantized": space.sha256("quantize", QUANTIZED_FILE) if target.int8 else None,
        "target": target.model_dump(mode="json"),
        "gates": space.settings.gates.model_dump(mode="json"),
        "labels": labels,
        "probes": space.sha256("distill", PROBES_FILE),  # which parity is shown on
        "dynamic_batch": dynamic_batch,
        "input_form": input_form,
        "builder": engine_builder() if target.runtime == "tensorrt" else None,
    }
    metadata = {
        "labels": "\n".join(labels),
        "input": described(space.teacher.record.input, input_form),
        "target": target.name,
        "student_sha256": student_sha256,
    }

    def graph(precision: Precision, folder: Path, typed: Typed | None = None) -> ExportedGraph:
        images = space.probes.images[: PARITY_IMAGES if dynamic_batch else 1]
        kind = "" if precision == "fp32" else f".{precision}"
        formats = typed or target
        return export_onnx(
            space.quantized_student(student) if precision == "int8" else space.student(student),
            folder / f"student{kind}{'.typed' if typed else ''}.onnx",
            example=as_float(torch.from_numpy(images)),
            opset=formats.opset,
            ir_version=formats.ir_version,
            precision=precision,
            dynamic_batch=dynamic_batch,
            # What reads typed graphs reads integers, too: a quarter of the bytes.
            integer_weights=precision == "int8" and (target.runtime == "onnxruntime" or typed is not None),
            typed=typed is not None,
            input_form=input_form,
            metadata=metadata,
        )

    def produce(folder: Path) -> ExportRecord:
        graphs: list[ExportedGraph] = []
        notes: list[str] = []

        def add(precision: Precision, typed: Typed | None = None) -> None:
            try:
                graphs.append(graph(precision, folder, typed))
            except CompressError as error:
                if typed is None and precision != "fp16":
                    raise
                # The device does without it, and hours of learning are behind.
                notes.append(f"There is no {'typed ' if typed else ''}{precision} file: {error.message}")

        for precision in target.precisions:
            add(precision)
        shipped = folder / graphs[-1].file_name
        if target.typed is not None:
            add("int8", target.typed)
        typed = next((folder / graph.file_name for graph in graphs if graph.typed), None)
        engine = build_engine(shipped, folder / PLAN_NAME, target, typed)
        write_deploy(folder, target.model_copy(update={"gates": space.settings.gates}), graphs)
        return ExportRecord(target=target.name, graphs=tuple(graphs), engine=engine, notes=tuple(notes))

    def summary(record: ExportRecord) -> str:
        return ", ".join(f"{graph.file_name} (opset {graph.opset})" for graph in record.graphs)

    record = space.stage("export", inputs, ExportRecord, produce, summary)
    for note in record.notes:
        space.progress.note(note, "warning")
    return record


def validate(
    space: Workspace,
    student: DistillRecord,
    exported: ExportRecord,
    labels: tuple[str, ...],
    holdout: Holdout | None = None,
) -> ValidateRecord:
    """Every artifact against the teacher, on probes that nothing was trained on; real images change no verdict."""
    gates, least = space.settings.gates, space.settings.probes.least
    inputs = {
        "student": [space.sha256("distill", name) for name in (STUDENT_FILE, LAST_FILE)],
        "quantized": space.sha256("quantize", QUANTIZED_FILE) if space.target.int8 else None,
        "graphs": [graph.sha256 for graph in exported.graphs],
        "engine": space.sha256("export", PLAN_NAME) if exported.engine.built else None,
        "cpu": cpu_name(),
        "runtime": space.target.runtime,
        "probes": [space.sha256("distill", PROBES_FILE), max(least, student.probes)],
        "gates": gates.model_dump(mode="json"),
        "labels": labels,
        "pool": space.sha256("distill", POOL_FILE),
        # Its teacher answers on that device; the probes were answered in distillation.
        "holdout": [holdout.name, holdout.sha256, holdout.notes, str(space.compute.device)] if holdout else None,
    }

    def produce(own: Path) -> ValidateRecord:
        probes, teacher = _enough_probes(space, own), _teacher_on_device(space)
        pool = ImagePool.load(space.file("distill", POOL_FILE)).images
        examination = Examination.on(probes, origin_of(probes, pool, teacher), gates, labels)
        weights, folder = space.file("distill", STUDENT_FILE), space.results["export"].folder
        last = undelivered("last weights", "fp32", TorchRunner(space.student(student, LAST_FILE)), examination)
        in_torch, graphs = examine_files(
            weights, space.student(student), folder, exported.graphs, space.target, examination, last
        )
        forms = [last]
        if space.target.int8 is not None:
            rounded = TorchRunner(space.quantized_student(student))
            forms.append(undelivered("fake-quantized", "int8", rounded, examination, in_torch))
        deciding, engines = decisive(graphs, exported.graphs), []
        if exported.engine.built:
            plan = space.file("export", PLAN_NAME)
            made = made_from(exported.engine.details.get("onnx_sha256"), exported.graphs, graphs)
            engines = [fidelity_of(plan, space.target.shipped, EngineRunner(plan), examination, origin=made)]
        cost = _cost_of_teacher(space, examination)
        record = concluded([in_torch, *graphs, *engines], engines or deciding, examination, forms, cost)
        real = _on_real_images(space, student, exported, holdout, labels) if holdout else None
        return record.model_copy(update={"holdout": real})

    return space.stage(
        "validate", inputs, ValidateRecord, produce, lambda record: f"{record.probes:,} probes: {record.verdict}"
    )


def _enough_probes(space: Workspace, folder: Path) -> Probes:
    """The probes of distillation, with the more that were asked for in the folder of this stage."""
    probes, least = space.probes, space.settings.probes.least
    missing = least - len(probes.images)
    if missing <= 0:
        return probes
    whole, made = batches_for(missing, space.settings, views_of(probes)), count(1)

    def on_batch() -> None:
        done = next(made)
        space.progress.advance(done, max(done, whole), "more probes")

    teacher = _teacher_on_device(space)
    probes = with_more(probes, least, teacher, space.embeddings(), space.settings, space.compute, on_batch)
    probes.save(folder / PROBES_FILE)
    return probes


def _cost_of_teacher(space: Workspace, examination: Examination) -> TeacherCost:
    """On the CPU and in the layout that the student is timed in."""
    network = space.teacher.to(torch.device("cpu"), torch.contiguous_format).network
    with TorchRunner(network) as runner:
        latency_ms = latency_of(runner, examination)
    return TeacherCost(size_bytes=4 * space.teacher.record.parameters, latency_ms=latency_ms)


def _on_real_images(
    space: Workspace, student: DistillRecord, exported: ExportRecord, holdout: Holdout, labels: tuple[str, ...]
) -> HoldoutRecord:
    """Every artifact of the ledger, in its order."""
    folder = space.results["export"].folder
    runners: dict[str, Runner] = {STUDENT_FILE: TorchRunner(space.student(student))}
    runners |= {graph.file_name: runner_of(folder / graph.file_name, space.target) for graph in exported.graphs}
    if exported.engine.built:
        runners[PLAN_NAME] = EngineRunner(folder / PLAN_NAME)
    return measure(holdout, _teacher_on_device(space), runners, space.progress.advance, labels)


def _teacher_on_device(space: Workspace) -> Teacher:
    return space.teacher.to(space.compute.device, torch.channels_last)
