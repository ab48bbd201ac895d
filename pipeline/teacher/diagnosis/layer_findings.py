"""What the weights and statistics of a teacher say without asking it anything: batch norms, dead channels, odd numbers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from compress.pipeline.records import Finding
from compress.pipeline.teacher.diagnosis.image_estimate import never_updated
from compress.pipeline.teacher.model import BatchNormStatistics, Teacher

TOPIC = "batch norm"

FALLBACK = (
    "Synthesis falls back on an image prior and dead leaves in place of the batch-norm term; expect a less faithful "
    "student, and probes that flatter it."
)
"""What happens to teachers without batch norm, and what it costs."""

FEW_BATCHES = 44
"""Batches after which 1 % of the initial mean 0 and variance 1 is left in running statistics: 0.9^44, 0.9 being what
the default momentum keeps."""

DEAD_STD = 0.01
"""Share of the liveliest channel's std behind the same batch norm at which a channel counts as constant."""

MANY_DEAD = 0.5
"""Share of all channels; a healthy ResNet-56 has 0.03."""

HUGE_WEIGHT = 1e4
"""Weights of healthy networks stay below 100; half precision, which accelerators compute in, ends at 65,504."""

MANY_DENORMALS = 1e-3
"""Share of the weights; each may take a processor a hundred times as long as an ordinary number."""

MOST_NAMED = 3


def layer_findings(teacher: Teacher, batches_tracked: Mapping[str, int]) -> Iterator[Finding]:
    """All findings of this module.

    Args:
        teacher: any.
        batches_tracked: batches that each batch norm has seen in training, where the checkpoint says.
    """
    network = teacher.network.network
    if teacher.bn_statistics:
        yield from statistics_findings(teacher.bn_statistics)
        yield from tracking_findings(tuple(batches_tracked.values()))
    else:
        yield no_batch_norm_finding(network)
    yield from dead_channel_findings(dead_channels(network))
    yield from weight_findings(network.named_parameters())


def no_batch_norm_finding(network: nn.Module) -> Finding:
    """Of a network without a single batch norm of images."""
    others = sorted({type(module).__name__ for module in network.modules() if "Norm" in type(module).__name__})
    how = f"it normalises by {', '.join(others)}" if others else "they were folded into its convolutions or never there"
    return Finding(
        severity="warning",
        topic=TOPIC,
        message=f"The teacher has no batch norms of images, whose statistics synthesis lives on: {how}.",
        advice=FALLBACK if others else f"Give the checkpoint from before any folding, where there is one. {FALLBACK}",
    )


def statistics_findings(statistics: Sequence[BatchNormStatistics]) -> Iterator[Finding]:
    """How many batch norms have recorded anything; at least one of each must be given."""
    lost = sum(never_updated(recorded) or bool((recorded.variance == 0).all()) for recorded in statistics)
    if lost:
        yield Finding(
            severity="problem" if lost == len(statistics) else "warning",
            topic=TOPIC,
            message=f"{lost} of {_counted(len(statistics), 'batch norm')} never recorded the statistics of an image.",
            advice="Give a checkpoint that was saved after training, with its batch norms tracking statistics.",
        )
    else:
        channels = sum(len(recorded.mean) for recorded in statistics)
        message = f"{_counted(len(statistics), 'batch norm')} with statistics of {_counted(channels, 'channel')}."
        yield Finding(severity="note", topic=TOPIC, message=message)


def tracking_findings(batches: Sequence[int]) -> Iterator[Finding]:
    """What the batches that each batch norm has seen tell of its past; nothing where the checkpoint does not say."""
    if batches and 0 < min(batches) < FEW_BATCHES:
        yield Finding(
            severity="warning",
            topic=TOPIC,
            message=f"A batch norm has seen only {_counted(min(batches), 'batch', 'batches')} of images, so that its "
            "statistics may still hold some of their initial values.",
            advice="Give a checkpoint from later in training.",
        )
    if len(set(batches)) > 1:
        fewer = sum(count < max(batches) for count in batches)
        yield Finding(
            severity="warning",
            topic=TOPIC,
            message=f"{fewer} of {_counted(len(batches), 'batch norm')} have seen fewer batches than the others "
            f"({min(batches):,} to {max(batches):,}), as after fine-tuning with some of them frozen.",
            advice="Where frozen ones remember other images than the last training's, expect a less faithful student.",
        )


def dead_channels(network: nn.Module) -> dict[str, Tensor]:
    """For each batch norm, by name, which of its channels `[C]` are the same whatever the image.

    Behind the batch norm a channel's std is |weight| sqrt(variance / (variance + eps)), if images are as in training.
    """
    dead = {}
    for name, norm in network.named_modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
            std = (norm.running_var / (norm.running_var + norm.eps)).sqrt()
            std = std if norm.weight is None else std * norm.weight.abs()
            dead[name] = std <= DEAD_STD * std.max()
    return dead


def dead_channel_findings(dead: Mapping[str, Tensor]) -> Iterator[Finding]:
    """How much of the network's width is unused, and where most.

    Args:
        dead: for each batch norm, by name, which of its channels `[C]` are.
    """
    total, count = sum(len(layer) for layer in dead.values()), sum(int(layer.sum()) for layer in dead.values())
    if not count:
        return
    shares = {name: layer.float().mean().item() for name, layer in dead.items()}
    worst = sorted((name for name in shares if shares[name] > 0), key=lambda name: -shares[name])[:MOST_NAMED]
    where = ", ".join(f"{name} {shares[name]:.0%}" for name in worst)
    many = count > MANY_DEAD * total
    yield Finding(
        severity="warning" if many else "note",
        topic="dead channels",
        message=f"{count:,} of {_counted(total, 'channel')} ({count / total:.1%}) behind batch norms are constant, most "
        f"in {where}.",
        advice="Look whether this is the network that was meant: most of it does nothing." if many else "",
    )


def weight_findings(parameters: Iterable[tuple[str, Tensor]]) -> Iterator[Finding]:
    """Numbers that are legal and yet a trouble.

    Args:
        parameters: names and weights.
    """
    weights = dict(parameters)
    total = sum(weight.numel() for weight in weights.values())
    denormal = sum(_count_denormals(weight) for weight in weights.values())
    if denormal:
        yield Finding(
            severity="warning" if denormal > MANY_DENORMALS * total else "note",
            topic="weights",
            message=f"{denormal:,} of {_counted(total, 'weight')} are denormal numbers, nearer to zero than 1.2e-38, which "
            "many processors compute with very slowly.",
            advice="Set weights below 1e-30 to zero, which changes no answer.",
        )
    huge = {name: peak for name, weight in weights.items() if (peak := weight.abs().max().item()) > HUGE_WEIGHT}
    if huge:
        name = max(huge, key=lambda name: huge[name])
        yield Finding(
            severity="warning",
            topic="weights",
            message=f"{_counted(len(huge), 'tensor')} of weights exceed {HUGE_WEIGHT:,.0f}, '{name}' most, with {huge[name]:.3g}.",
            advice="Half precision and int8 can hardly hold them; use a checkpoint from before training diverged.",
        )


def _count_denormals(weight: Tensor) -> int:
    return int(((weight != 0) & (weight.abs() < torch.finfo(weight.dtype).tiny)).sum())


def _counted(count: int, singular: str, plural: str = "") -> str:
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"
