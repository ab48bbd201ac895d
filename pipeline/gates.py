"""Limits, and how what was measured of an artifact stands to them.

A share is judged on its 95 % interval, not on its value: PASS when the whole interval clears the limit, FAIL when the whole
interval misses it, otherwise INCONCLUSIVE, which is not PASS. Probes that could not tell a faithful student from a useless
one decide no gate that rests on them, whatever they show.
"""

import math
from collections.abc import Mapping, Sequence

from compress.exporters.targets import Gates
from compress.pipeline.proportions import images_to_settle, percent
from compress.pipeline.records import Gate, Proportion, Verdict

UNDECIDED: Verdict = "INCONCLUSIVE"

FINITE, AGREEMENT, CLASSES, KL = "finite outputs", "agreement", "class agreement", "mean KL"
SIZE, LATENCY = "size", "latency"
PROBE_FREE = (FINITE, SIZE, LATENCY)
"""Gates that hold or fail for any images: these stand even where the probes are inadequate."""


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """FAIL if any failed, else INCONCLUSIVE if any is, else PASS."""
    if "FAIL" in verdicts:
        return "FAIL"
    return "INCONCLUSIVE" if "INCONCLUSIVE" in verdicts else "PASS"


def judge(
    gates: Gates,
    *,
    agreement: Proportion,
    by_class: Mapping[str, Proportion],
    mean_kl: float,
    size_bytes: int,
    broken: int,
    latency_ms: float | None = None,
    timed_on_device: bool = True,
    adequate: bool = True,
) -> tuple[Gate, ...]:
    """Every limit that is set, judged; `mean_kl` in nats, `broken` images with NaN or infinity among the logits.

    `timed_on_device` says whether `latency_ms` stands for the device that the limit is about, `adequate` whether the probes
    can carry a verdict.
    """
    judged = [_judge_finite(broken, agreement.total)]
    if gates.min_agreement is not None:
        judged.append(_judge_agreement(agreement, gates.min_agreement))
    if gates.min_class_agreement is not None:
        judged.append(_judge_classes(by_class, gates.min_class_agreement, agreement.total))
    if gates.max_mean_kl is not None:
        judged.append(_judge_point(KL, mean_kl, gates.max_mean_kl, "nats"))
    if gates.max_size_mb is not None:
        judged.append(_judge_point(SIZE, size_bytes / 1e6, gates.max_size_mb, "MB"))
    if gates.max_latency_ms is not None:
        judged.append(_judge_latency(latency_ms, gates.max_latency_ms, timed_on_device))
    return tuple(judged if adequate else map(_without_probes, judged))


def _without_probes(gate: Gate) -> Gate:
    """The same where the probes say nothing."""
    if gate.name in PROBE_FREE:
        return gate
    explanation = f"the probes cannot carry a verdict; on them {gate.explanation}"
    return gate.model_copy(update={"verdict": UNDECIDED, "explanation": explanation, "settled_by": None})


def _judge_finite(broken: int, total: int) -> Gate:
    explanation = (
        f"NaN or infinity in the output for {broken} of {total} probes" if broken else "every output is finite"
    )
    return Gate(
        name=FINITE, limit=0, measured=f"{broken} broken", verdict="FAIL" if broken else "PASS", explanation=explanation
    )


def _judge_agreement(agreement: Proportion, limit: float) -> Gate:
    interval = f"{percent(agreement.low)} to {percent(agreement.high)}"
    required = f"{limit * 100:.6g} %"
    needed = None
    verdict: Verdict
    if agreement.low >= limit:
        verdict, explanation = "PASS", f"the whole 95 % interval, {interval}, reaches the required {required}"
    elif agreement.high < limit:
        verdict, explanation = "FAIL", f"the whole 95 % interval, {interval}, stays below the required {required}"
    else:
        verdict, needed = UNDECIDED, images_to_settle(agreement, limit)
        settled = (
            _settled(needed) if needed else "the agreement is exactly the limit, which no number of probes settles"
        )
        explanation = f"the 95 % interval, {interval}, includes the required {required}; {settled}"
    return Gate(
        name=AGREEMENT,
        limit=limit,
        measured=percent(agreement.value),
        verdict=verdict,
        explanation=explanation,
        settled_by=needed,
    )


def _judge_classes(by_class: Mapping[str, Proportion], limit: float, probes: int) -> Gate:
    """The classes of lowest agreement decide; those that the teacher never names cannot be judged."""
    seen = sorted(((part, name) for name, part in by_class.items() if part.total), key=lambda item: item[0].value)
    missing = [item for item in seen if item[0].high < limit]
    undecided = [item for item in seen if item[0].low < limit]
    required = f"{limit * 100:.6g} %"
    needed = None
    verdict: Verdict
    if missing:
        verdict = "FAIL"
        explanation = f"the whole 95 % interval of {_told(missing)} stays below the required {required}"
    elif undecided:
        verdict, needed = UNDECIDED, _probes_for([part for part, _ in undecided], limit, probes)
        settled = _settled(needed) if needed else "one of them is exactly there, which no number of probes settles"
        explanation = f"the 95 % interval of {_told(undecided)} includes the required {required}; {settled}"
    else:
        verdict, explanation = "PASS", f"the whole 95 % interval of every class reaches the required {required}"
    measured = percent(seen[0][0].value) if seen else "no class"
    return Gate(
        name=CLASSES, limit=limit, measured=measured, verdict=verdict, explanation=explanation, settled_by=needed
    )


def _probes_for(parts: Sequence[Proportion], limit: float, probes: int) -> int | None:
    """How many probes in all settle it, if they fall to the classes as these did: one class below the limit fails, and it
    takes all of them to pass."""
    below = [part for part in parts if part.value < limit]
    needed = [(images_to_settle(part, limit), part.total) for part in below or parts]
    if any(images is None for images, _ in needed):
        return None
    in_all = [math.ceil(images * probes / total) for images, total in needed if images is not None]
    return min(in_all) if below else max(in_all)


def _settled(probes: int) -> str:
    return f"some {probes:,} probes would settle it if the agreement stays the same"


def _told(classes: Sequence[tuple[Proportion, str]], most: int = 3) -> str:
    named = [f"{name} ({percent(part.low)} to {percent(part.high)})" for part, name in classes[:most]]
    rest = len(classes) - len(named)
    return ", ".join(named) + (f" and {rest:,} more classes" if rest > 0 else "")


def _judge_latency(latency_ms: float | None, limit: float, timed_on_device: bool) -> Gate:
    """The time on one processor tells nothing about another, so where the device's is not known nothing is decided."""
    if timed_on_device and latency_ms is not None:
        return _judge_point(LATENCY, latency_ms, limit, "ms")
    explanation = (
        "the latency was not measured"
        if timed_on_device
        else "the latency is known only on the device: build and replay the engine there, and validate with its receipt"
    )
    return Gate(name=LATENCY, limit=limit, measured="not measured", verdict="INCONCLUSIVE", explanation=explanation)


def _judge_point(name: str, value: float, limit: float, unit: str) -> Gate:
    passed = value <= limit
    return Gate(
        name=name,
        limit=limit,
        measured=f"{value:.3g} {unit}",
        verdict="PASS" if passed else "FAIL",
        explanation=f"a {name} of {value:.4g} {unit} is {'within' if passed else 'over'} the allowed {limit:.6g} {unit}",
    )
