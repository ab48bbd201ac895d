"""The teacher as the pipeline uses it: a frozen classifier that lets gradients through to its input."""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.pipeline.networks import StagedNetwork
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.records import TeacherRecord

LEAST_PROBABILITY = 1e-30
"""What a probability that underflowed to zero is taken for, so that its logarithm is a number."""


@dataclass(frozen=True, slots=True)
class BatchNormStatistics:
    """What a batch norm saw in training, `[C]` each."""

    mean: Tensor
    variance: Tensor


class Teacher:
    """A frozen network in evaluation mode; images are `[N, C, H, W]`, float32 in [0, 1]."""

    def __init__(self, record: TeacherRecord, network: Normalised) -> None:
        self.record = record
        self.network = network.eval().requires_grad_(False)
        self._batch_norms = self._in_order_of_execution()

    @property
    def bn_statistics(self) -> list[BatchNormStatistics]:
        """Of every batch norm, in order of execution, on the device where the teacher is."""
        return [
            BatchNormStatistics(_present(norm.running_mean), _present(norm.running_var)) for norm in self._batch_norms
        ]

    def logits(self, images: Tensor) -> Tensor:
        """Images `[N, C, H, W]` to logits `[N, K]`."""
        return self._as_logits(self.network(images))

    def logits_and_bn_inputs(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits `[N, K]`, and what enters each batch norm, `[N, C_l, H_l, W_l]`, in the order of `bn_statistics`."""
        entering: dict[nn.Module, Tensor] = {}

        def keep(norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            entering[norm] = arguments[0]

        with ExitStack() as hooks:
            for norm in self._batch_norms:
                hooks.enter_context(norm.register_forward_pre_hook(keep))
            logits = self.logits(images)
        return logits, [entering[norm] for norm in self._batch_norms]

    def logits_and_stage_outputs(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits `[N, K]`, and what each stage puts out, `[N, C_s, H_s, W_s]`.

        Raises:
            TypeError: the network is of a family without stages.
        """
        network = self.network.network
        if not isinstance(network, StagedNetwork):
            raise TypeError(f"{type(network).__name__} has no stages")
        outputs, stages = network.logits_and_stage_outputs(self.network.normalise(images))
        return self._as_logits(outputs), stages

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.preserve_format) -> "Teacher":
        """This teacher, moved."""
        self.network.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]  # its stub lacks it
        return self

    def _as_logits(self, outputs: Tensor) -> Tensor:
        """Log-probabilities are logits already; of probabilities the logarithm is, up to a constant."""
        return outputs.clamp_min(LEAST_PROBABILITY).log() if self.record.output == "probabilities" else outputs

    @torch.no_grad()
    def _in_order_of_execution(self) -> list[nn.BatchNorm2d]:
        """The batch norms of images as one blank image passes them; those of vectors say nothing about images."""
        order: list[nn.BatchNorm2d] = []

        def keep(norm: nn.BatchNorm2d, arguments: tuple[Tensor, ...]) -> None:
            if arguments[0].dim() == 4 and norm.running_mean is not None and norm not in order:
                order.append(norm)

        images, device = self.record.input, self.network.mean.device
        blank = torch.zeros(1, images.channels, images.height, images.width, device=device)
        with ExitStack() as hooks:
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    hooks.enter_context(module.register_forward_pre_hook(keep))
            self.logits(blank)
        return order


def _present(statistic: Tensor | None) -> Tensor:
    """A running statistic; batch norms that track none are never among those of a teacher."""
    if statistic is None:
        raise TypeError("a teacher's batch norms track their statistics")
    return statistic
