"""What to do about a verdict, in words."""

import math

from compress.exporters.targets import Target
from compress.pipeline.adequacy import MAX_COPIED, MIN_COVERAGE
from compress.pipeline.fidelity import find_artifact
from compress.pipeline.gates import AGREEMENT, CLASSES, KL, LATENCY, SIZE, UNDECIDED
from compress.pipeline.records import ArtifactFidelity, Gate, ValidateRecord

MOST_PROBES = 20_000
"""That are asked for; a limit that needs more is met by chance."""

SPARE = 1.25
"""Times as many as would settle it: the agreement on more of them is another one."""


def advice(validate: ValidateRecord) -> str:
    """What to do about a verdict that is not PASS, where the ledger tells; empty otherwise. The float student comes first."""
    in_float, judged = validate.ledger[0], find_artifact(validate.ledger, validate.shipped)
    if validate.verdict == "PASS":
        return ""
    if not validate.adequacy.adequate:
        return _better_probes(validate)
    if more := _settled_by(judged):
        if more > MOST_PROBES:
            return f"What was measured is so near to a limit that it would take some {more:,} probes to be sure of it."
        more = math.ceil(SPARE * more)
        return f"More probes may settle it: the command of the run with --probes {more} makes them, and learns nothing again."
    if any((gate.verdict, gate.name) == ("FAIL", SIZE) for gate in judged.gates):
        return "A smaller student takes less: --set student.max_parameter_ratio=0.2."
    if _misses_agreement(in_float) and _misses_agreement(judged):
        return (
            "The float student does not reach it either. Give it more time (--budget 30m, --recipe thorough), or let it be "
            "larger (--set student.max_parameter_ratio=0.6)."
        )
    if _misses_agreement(judged):
        return (
            "The float student reaches it: what is missing went with the rounding. The report lists what each layer costs; "
            "--set quantize.max_left_float=6 leaves more of them in floating point."
        )
    return ""


def _settled_by(row: ArtifactFidelity) -> int | None:
    """How many probes would let shares that are above their limits clear them; None where they are no answer."""
    # A time that only the device can tell is no matter of probes.
    against = [
        gate for gate in row.gates if gate.verdict != "PASS" and (gate.verdict, gate.name) != (UNDECIDED, LATENCY)
    ]
    needed = [gate.settled_by for gate in against if gate.settled_by is not None and _may_pass(gate, row)]
    return max(needed) if against and len(needed) == len(against) else None


def _may_pass(gate: Gate, row: ArtifactFidelity) -> bool:
    """Whether what was measured is above a limit that it does not clear for want of probes."""
    if gate.verdict != UNDECIDED or gate.name not in (AGREEMENT, CLASSES):
        return False
    parts = [row.agreement] if gate.name == AGREEMENT else [part for part in row.agreement_by_class if part.total]
    return all(part.value > gate.limit for part in parts)


def _better_probes(validate: ValidateRecord) -> str:
    """What makes images that the teacher knows; nothing does that the user could set where the student learned from them."""
    adequacy, probes = validate.adequacy, validate.probes
    if adequacy.copied > MAX_COPIED * probes or adequacy.broken:
        return ""
    if len(adequacy.reasons) == 1 and adequacy.classes_seen < MIN_COVERAGE * adequacy.num_classes:
        return f"More images may show more classes: the command of the run with --probes {2 * probes} makes them, and learns nothing again."
    return (
        "What helps is a generator that learns for longer: --set probes.warmup_batches=8 and --set synthesis.steps=60, with "
        "which everything is learned anew. Where the teacher's normalisation was guessed, give it first: --mean and --std."
    )


def remarks(validate: ValidateRecord, target: Target) -> str:
    """What to know and to do beside the verdict; empty where there is nothing."""
    return " ".join(filter(None, (advice(validate), loss_remark(validate), speed_remark(validate, target))))


def loss_remark(validate: ValidateRecord) -> str:
    """Where what rounding cost begins, and how it is avoided; empty where it cost no more than its share."""
    told: dict[str, str] = {}
    for row in validate.ledger:
        if row.step and (start := row.step.starts_in) and start.layer not in told:
            cure = (
                f" --set quantize.exclude=[{start.layer}] leaves it in floating point."
                if row.precision == "int8"
                else ""
            )
            told[start.layer] = (
                f"Most of what {row.artifact} loses begins in the layer {start.layer}, whose output falls to "
                f"{start.sqnr_db:.0f} dB from {start.before_db:.0f} dB or more before it.{cure}"
            )
    return " ".join(told.values())


def speed_remark(validate: ValidateRecord, target: Target) -> str:
    """That int8 is no faster than fp32 on the CPU that ran both, where it is such a CPU that the model is for."""
    graphs = {row.precision: row for row in validate.ledger if row.artifact.endswith(".onnx")}
    one, other = graphs.get("int8"), graphs.get("fp32")
    if target.runtime != "onnxruntime" or one is None or other is None or None in (one.latency_ms, other.latency_ms):
        return ""
    assert one.latency_ms is not None and other.latency_ms is not None
    if one.latency_ms < other.latency_ms:
        return ""
    return (
        f"On this CPU {one.artifact} is no faster than {other.artifact}: {one.latency_ms:.3g} ms against "
        f"{other.latency_ms:.3g} ms for one image. Where the device is alike, deploy {other.artifact}."
    )


def _misses_agreement(row: ArtifactFidelity) -> bool:
    """Not so where an agreement above its limit is only not certain yet."""
    rests_on_answers = [gate for gate in row.gates if gate.name in (AGREEMENT, CLASSES, KL)]
    return any(gate.verdict != "PASS" and not _may_pass(gate, row) for gate in rests_on_answers)
