"""What every network has in common: an entrance, stages of blocks that run one after the other, and an exit."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from compress.pipeline.networks.spec import Kept, NetworkSpec

Block = tuple[nn.Module, ...]
"""Modules that run one after the other and are kept or dropped together."""


class Stage(NamedTuple):
    """What works at one resolution: modules that change the shape and always stay, then blocks."""

    opening: tuple[nn.Module, ...]
    blocks: Sequence[Block]

    def run(self, x: Tensor) -> Tensor:
        """What the stage before put out, to what this one puts out."""
        return run((*self.opening, *(module for block in self.blocks for module in block)), x)


class Inner(NamedTuple):
    """Channels that only the inside of a block sees, by the names of the layers that they pass."""

    put_out: tuple[str, ...]
    """Layers that put them out, or have a weight for each of them."""
    taken_in: tuple[str, ...]
    """Layers that take them in; the first is where the block needs them, others only weigh them."""


class StagedNetwork(nn.Module):
    """Normalised images `[N, C, H, W]` to logits `[N, num_classes]`, in stages that students can match and inherit."""

    spec: NetworkSpec

    def enter(self, images: Tensor) -> Tensor:
        """What the first stage takes."""
        raise NotImplementedError

    def stage_list(self) -> list[Stage]:
        """The stages in order."""
        raise NotImplementedError

    def leave(self, x: Tensor) -> Tensor:
        """What the last stage puts out, to logits `[N, num_classes]`."""
        raise NotImplementedError

    def inputs_left(self, kept: Kept) -> dict[str, Tensor]:
        """Names of the layers that see less once only the kept blocks are there, and which input channels are left."""
        return {}

    def inner_channels(self) -> list[Inner]:
        """Groups of channels that can be made fewer without anything changing outside of their block."""
        return []

    def as_maps(self, x: Tensor) -> Tensor:
        """What a stage puts out, as `[N, C_s, H_s, W_s]`."""
        return x

    def logits_and_stage_outputs(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits `[N, num_classes]`, and what each stage puts out, `[N, C_s, H_s, W_s]`."""
        x, outputs = self.enter(images), []
        for stage in self.stage_list():
            x = stage.run(x)
            outputs.append(self.as_maps(x))
        return self.leave(x), outputs

    def forward(self, images: Tensor) -> Tensor:
        x = self.enter(images)
        for stage in self.stage_list():
            x = stage.run(x)
        return self.leave(x)


def run(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    """The modules one after the other."""
    for module in modules:
        x = module(x)
    return x


def blocks_of(stage: Iterable[nn.Module]) -> list[Block]:
    """Blocks of one module each."""
    return [(block,) for block in stage]
