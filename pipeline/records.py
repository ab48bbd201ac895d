"""Frozen records that pass between stages: paths, shapes, hashes and numbers, never a live model.

A leaf module: it imports nothing of the project, so that `exporters` may use it too.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Output = Literal["logits", "log-probabilities", "probabilities"]
InputForm = Literal["float32-nchw", "uint8-nhwc"]


class Record(BaseModel):
    """Immutable, refuses unknown fields, round-trips through JSON."""

    # The docstrings of fields become the descriptions of the published schema.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants", use_attribute_docstrings=True)


class InputSpec(Record):
    """What a network takes: images `[N, channels, height, width]` in [0, 1], normalised by `mean` and `std` inside."""

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str = ""
    """Where size and normalisation come from, in words."""


Severity = Literal["note", "warning", "problem"]


class Finding(Record):
    """Something that the user should know before relying on a result."""

    severity: Severity
    """A note only informs; a warning costs fidelity or rests on an assumption; with a problem little can be expected."""
    topic: str
    """A word or two, such as `batch norm`."""
    message: str
    """One sentence: what was found."""
    advice: str = ""
    """One sentence: what to do about it."""

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".strip()


class TeacherRecord(Record):
    """What intake found out about a checkpoint."""

    file_name: str
    sha256: str
    code_sha256: str = ""
    """Digest of the Python code that computes it, where that is the user's own."""
    format: str
    """In words, such as `training checkpoint, state_dict under 'state_dict'`."""
    name: str
    """Of the architecture, as the field knows it, such as `resnet56`."""
    architecture: str
    """The same in a line for people."""
    spec: dict[str, Any]
    """The network's spec as JSON, which `pipeline.networks` builds it from; `{"family": "program"}` for a network that
    is known only by its graph or code."""
    input: InputSpec
    output: Output = "logits"
    """What the network itself puts out; the teacher's `logits` are logits whatever this is."""
    num_classes: int
    labels: tuple[str, ...] = ()
    """Class names in the order of the outputs, where the checkpoint carries them."""
    parameters: int
    batch_norm_layers: int
    reasons: tuple[str, ...] = ()
    """Why this architecture and not another."""
    findings: tuple[Finding, ...] = ()
    """The pre-flight diagnosis, gravest first."""

    @property
    def identity(self) -> tuple[str, str, dict[str, Any], str]:
        """What decides on the teacher's answers, its input apart: what is made from it is stale when this changes."""
        return self.sha256, self.code_sha256, self.spec, self.output


class EmbeddingRecord(Record):
    """Label-text embeddings, float32 `[num_classes, dimension]` in `lte.safetensors` under `embeddings`."""

    encoder: str
    encoder_sha256: str
    prompt: str
    dimension: int
    labels: tuple[str, ...]
    closest_pair: tuple[str, str, float] | None
    """The two labels whose texts are most alike, and their cosine."""
    findings: tuple[Finding, ...] = ()
    """What may be wrong with the names."""


class HistoryPoint(Record):
    """One round of distillation, and a line of `metrics.jsonl`.

    The parts of the losses are means over the round's steps, before their weights; None where a part took no part.
    """

    round: int
    """Counted from 0; those of the warm-up come first."""
    kd_steps: int
    """Student steps so far."""
    pool_images: int
    synthesis_loss: float
    """Of the images that were kept, mean over the round's batches."""
    kd_loss: float
    """The student's whole loss, mean over the round's steps; not a number in warm-up."""
    monitor_agreement: float | None
    """Share of the monitor's held-out images on which the student, as it would be shipped, names the teacher's class."""
    seconds: float
    """Since distillation began, pauses left out."""
    batch_norm_loss: float | None = None
    prior_loss: float | None = None
    """The image prior, which takes the place of batch norm where the teacher has none."""
    one_hot_loss: float | None = None
    adversarial_loss: float | None = None
    kl_loss: float | None = None
    """Of the student's answers, by the distillation temperature."""
    stage_loss: float | None = None
    """Of the outputs of the student's stages."""
    learning_rate: float | None = None
    """Of the round's last student step."""


class SampleGrid(Record):
    """A picture of synthetic images in the stage folder."""

    file_name: str
    moment: str
    """Of the run, such as `after warm-up`."""
    classes: tuple[int, ...]
    """Whose images its rows hold, from the top."""


class DistillRecord(Record):
    """The distilled student: `student.safetensors`, `student.last.safetensors`, `pool.safetensors`, `probes.npz` in the stage
    folder."""

    student: str
    spec: dict[str, Any]
    inherited: bool
    """Whether the student was derived from the teacher rather than initialised at random."""
    kept_blocks: tuple[tuple[int, ...], ...] | None = None
    """Of such a student: the positions of the blocks of each of the teacher's stages that it began with."""
    parameters: int
    warmup_rounds: int
    rounds: int
    annealed: tuple[float, ...]
    """How far the learning rate's cosine was after each of them; its last is below 1 where a budget cut the run short."""
    kd_steps: int
    pool_images: int
    probes: int
    monitor_agreement: float
    """Of the shipped weights, on the held-out images that they were chosen on."""
    history: tuple[HistoryPoint, ...]
    samples: tuple[SampleGrid, ...] = ()
    notes: tuple[str, ...] = ()
    ranks: int = 1
    """Processes that took part."""


class LayerCost(Record):
    """What rounding one layer alone does to the student's answers."""

    layer: str
    sqnr_db: float
    """Of the logits, against those of the float student."""
    agreement: float
    """Share of images on which the student still names the same class."""


class QuantizeRecord(Record):
    """The fake-quantized student: `student.int8.safetensors` in the stage folder.

    Agreement is that with the teacher, on pool images held out of calibration and tail.
    """

    scheme: str
    quantized_layers: tuple[str, ...]
    float_layers: tuple[str, ...]
    left_float: tuple[str, ...] = ()
    """Of these, the layers that cost most and were left in floating point for the sake of fidelity."""
    layer_costs: tuple[LayerCost, ...] = ()
    """With all layers quantized that are not excluded by the settings; the costliest first."""
    tail_steps: int
    held_out: int
    """Images that agreement was taken on."""
    agreement_float: float
    """Of the float student."""
    agreement_calibrated: float
    """Right after calibration."""
    agreement: float
    """Of what is shipped: after the quantization-aware tail, or without it where it did not bring the student closer."""


class ExportedGraph(Record):
    """One ONNX file, as read back from disk."""

    file_name: str
    precision: Literal["fp32", "fp16", "int8"]
    typed: bool = False
    """Whether the graph itself says what is computed in fp16, beside int8, instead of leaving that to the builder."""
    input_form: InputForm = "float32-nchw"
    """What `images` is: numbers in [0, 1] with the channels first, or bytes with the channels last."""
    opset: int
    ir_version: int
    size_bytes: int
    sha256: str
    max_abs_difference: float
    """Largest absolute difference of logits between ONNX Runtime and torch, on the same images."""


class EngineRecord(Record):
    """The TensorRT engine, or why there is none and how the device builds it."""

    built: bool
    file_name: str | None
    message: str
    """One line for the report."""
    tensorrt_version: str | None = None
    details: dict[str, Any] = {}


class ExportRecord(Record):
    """The deployable files."""

    target: str
    graphs: tuple[ExportedGraph, ...]
    engine: EngineRecord
    notes: tuple[str, ...] = ()


class Proportion(Record):
    """A share of `total` images, with its 95 % Wilson interval."""

    value: float
    """In [0, 1]."""
    low: float
    """Lower bound of the interval."""
    high: float
    """Upper bound."""
    total: int
    design_effect: float = 1.0
    """How many of the images tell as much as one would that is like no other; the interval allows for it."""


class Gate(Record):
    """One limit and how a measured value stands to it."""

    name: str
    """Such as `agreement`."""
    limit: float
    """As the option gives it: shares as fractions, nats, 10^6 bytes or milliseconds."""
    measured: str
    """With its unit."""
    verdict: Verdict
    explanation: str
    settled_by: int | None = None
    """How many probes would decide it if nothing else changed, where it is open for want of them."""


class LayerNoise(Record):
    """What is left of one layer's output in another precision."""

    layer: str
    sqnr_db: float


class LayerStart(Record):
    """The layer in which most of a loss begins."""

    layer: str
    before_db: float
    """Signal-to-noise ratio of the worst layer before it."""
    sqnr_db: float
    """Of its own output."""


class Confusion(Record):
    """Probes of one class by the teacher that an artifact gives another."""

    teacher: int
    artifact: int
    count: int
    total: int
    """Probes that the teacher gives the class."""


class Step(Record):
    """An artifact against the one that it was made from, on the probes."""

    origin: str
    """The artifact that it was made from."""
    agreement: Proportion
    """Probes on which the two name the same class."""
    mean_kl: float
    sqnr_db: float
    lost: float
    """Of the agreement with the teacher, from one to the other."""
    starts_in: LayerStart | None = None
    """Where a step lost more than its share."""


class Measures(Record):
    """How near the answers to some images are to the teacher's."""

    agreement: Proportion
    """Images on which the two name the same class."""
    top5_agreement: Proportion | None
    """Those on which the teacher's class is among the first five; None with five classes or fewer."""
    mean_kl: float
    """Mean KL divergence from the teacher, in nats."""
    kl_p99: float
    """Its 99th percentile."""
    sqnr_db: float
    """Signal-to-quantization-noise ratio of the logits."""
    margin_weighted_agreement: float
    """Agreement where an image counts by how far the teacher's first class is ahead of its second."""
    confidence_shift: float
    """How much surer of itself it is than the teacher, in [-1, 1]."""


class LedgerRow(Measures):
    """A form of the student against the teacher, on the probes, and against the form that it was made from."""

    artifact: str
    precision: str
    step: Step | None = None
    """None for the first form."""


class ArtifactFidelity(LedgerRow):
    """One row of the fidelity ledger: a delivered file."""

    size_bytes: int
    latency_ms: float | None
    """Median of one image: of an engine on its GPU, of anything else on the CPU that ran `compress`, with as many threads as
    the runtime chooses."""
    by_kind: dict[str, Measures]
    """The same for each kind of probes."""
    agreement_by_class: tuple[Proportion, ...]
    """On the probes that the teacher puts into each class."""
    agreement_by_generator: tuple[Proportion, ...]
    """On the probes of each generator."""
    confusion: tuple[tuple[int, ...], ...] | None
    """Probes by the teacher's class, the rows, and the artifact's; None with many classes."""
    confusions: tuple[Confusion, ...]
    """The most frequent, each at least twice."""
    gates: tuple[Gate, ...]
    verdict: Verdict


class TeacherCost(Record):
    """What the teacher takes, for comparison."""

    size_bytes: int
    """Of its parameters in float32."""
    latency_ms: float
    """Median of one image in PyTorch, on the CPU that ran `compress`."""


class ProbeAdequacy(Record):
    """Whether the probes can carry a verdict at all."""

    adequate: bool
    classes_seen: int
    """Classes that the teacher names on at least one probe."""
    num_classes: int
    largest_class_share: float
    """Share of the probes that the teacher puts into its most frequent class."""
    median_confidence: float
    """The teacher's median largest softmax probability on the probes made for a class."""
    on_target: Proportion
    """Share of the images made for a class that the teacher puts into that class; where most are such, the others are no probes."""
    batch_norm_shift: float | None = None
    """How far the features of those probes lie from the teacher's training, in standard deviations, by its batch norms."""
    repeated: int = 0
    """Probes made for a class that are like another of them."""
    copied: int = 0
    """Probes that are like an image which the student learned from."""
    broken: int = 0
    """Probes that the teacher itself answers with NaN or infinity."""
    unrecognised: int = 0
    """Images made for a class that were left out, since the teacher takes them for another one."""
    reasons: tuple[str, ...]
    """Why not; empty when adequate."""


class HoldoutRow(Record):
    """An artifact on real images."""

    artifact: str
    agreement: Proportion
    """With the teacher."""
    accuracy: Proportion | None
    """None where the true classes are not known."""


class HoldoutRecord(Record):
    """Every artifact on real images that the user gave: what is known beside the verdict, which never depends on it."""

    name: str
    """Of the folder or file."""
    images: int
    sha256: str
    """Of the pixels, as the teacher takes them, and the classes."""
    teacher_accuracy: Proportion | None
    rows: tuple[HoldoutRow, ...]
    """In the order of the ledger."""
    notes: tuple[str, ...] = ()
    warning: str = ""
    """That the classes of teacher and images do not seem to be the same."""


class ValidateRecord(Record):
    """Every artifact against the teacher."""

    probes: int
    probe_images: int
    """Synthesised images that they are views of."""
    probe_kinds: dict[str, int]
    adequacy: ProbeAdequacy
    teacher: TeacherCost | None = None
    """None where a delivered folder is judged again, which has no teacher."""
    undelivered: tuple[LedgerRow, ...] = ()
    """Forms of the student that the delivered ones were made from: its last weights, and the fake-quantized one."""
    ledger: tuple[ArtifactFidelity, ...]
    shipped: str
    """The artifact in the ledger that decides the verdict."""
    verdict: Verdict
    cpu: str
    holdout: HoldoutRecord | None = None
    """Real images, where the user gave some."""
