"""Vision transformers with a class token and learned positions, any depth, width and patch size; no batch norm.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021 (arXiv 2010.11929), section 3.1; Touvron et al.,
"Training data-efficient image transformers", ICML 2021 (DeiT), for the small sizes.
"""

from itertools import islice, pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from compress.pipeline.networks.spec import Count, Kept, NetworkSpec, counts_of, narrower
from compress.pipeline.networks.staged import Inner, Stage, StagedNetwork, blocks_of

EPSILON = 1e-6
"""Of the layer norms, as torchvision and timm have it."""

_STAGES = 4
"""As many as convolutional networks for images of 224 px usually have."""

_LETTERS = {
    # width and depth. Source: table 1 of both papers; Ti and S are DeiT's
    (192, 12): "Ti",
    (384, 12): "S",
    (768, 12): "B",
    (1024, 24): "L",
    (1280, 32): "H",
}


class ViTSpec(NetworkSpec):
    """What it takes to build a vision transformer.

    `patch` is the side of a patch in pixels and `grid` the number of patches a side, so that only square images of
    `patch * grid` pixels fit. `attention` says whether the weights of query, key and value lie in one tensor or three.
    All layers work at one resolution; `stages` counts those of each of the groups that stand for stages, where they are
    not the usual ones.
    """

    family: Literal["vit"] = "vit"
    patch: Count
    grid: Count
    width: Count
    depth: Count
    mlp_width: Count
    heads: Count
    attention: Literal["joint", "separate"] = "joint"
    stages: tuple[Count, ...] = ()
    epsilon: float = EPSILON

    @model_validator(mode="after")
    def _equal_heads(self) -> "ViTSpec":
        if self.width % self.heads:
            raise ValueError(f"{self.width} channels cannot be shared out to {self.heads} heads")
        return self

    @model_validator(mode="after")
    def _all_layers_in_stages(self) -> "ViTSpec":
        if sum(self.stage_depths) != self.depth:
            raise ValueError(f"the stages count {sum(self.stages)} layers of {self.depth}")
        return self

    @property
    def stage_depths(self) -> tuple[int, ...]:
        """Layers of each stage: by default four groups that are equal up to one layer."""
        groups = min(_STAGES, self.depth)
        ends = [self.depth * number // groups for number in range(groups + 1)]
        return self.stages or tuple(end - start for start, end in pairwise(ends))

    @property
    def droppable(self) -> tuple[tuple[bool, ...], ...]:
        """Every layer."""
        return tuple((True,) * count for count in self.stage_depths)

    def keeping(self, kept: Kept) -> "ViTSpec":
        counts = counts_of(kept)
        return self.model_copy(update={"depth": sum(counts), "stages": counts})

    def narrowed(self, share: float) -> "ViTSpec":
        """The width inside the perceptrons."""
        return self.model_copy(update={"mlp_width": narrower(self.mlp_width, share)})

    @property
    def letter(self) -> str | None:
        """What the field calls this depth and width; None where it has no name."""
        return _LETTERS.get((self.width, self.depth))

    @property
    def name(self) -> str:
        return f"vit_{self.letter.lower() if self.letter else f'{self.depth}x{self.width}'}_{self.patch}"

    @property
    def title(self) -> str:
        name = f"ViT-{self.letter}/{self.patch}" if self.letter else "ViT"
        sizes = f"{self.depth} layers of width {self.width}, {self.heads} heads, {self.patch}x{self.patch} patches"
        return f"{name} ({sizes}, no batch norm)"

    @property
    def usual_size(self) -> int:
        """The one height and width in pixels that the position embedding is for."""
        return self.patch * self.grid

    @property
    def minimum_size(self) -> int:
        return self.usual_size

    @property
    def maximum_size(self) -> int:
        return self.usual_size


class Attention(nn.Module):
    """Multi-head self-attention of tokens `[N, T, width]`.

    `inputs` is one layer that puts out queries, keys and values side by side, or one layer for each of them.
    """

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.heads = spec.heads
        layers, outputs = (1, 3 * spec.width) if spec.attention == "joint" else (3, spec.width)
        self.inputs = nn.ModuleList(nn.Linear(spec.width, outputs) for _ in range(layers))
        self.project = nn.Linear(spec.width, spec.width)

    def forward(self, tokens: Tensor) -> Tensor:
        parts = torch.cat([layer(tokens) for layer in self.inputs], -1).unflatten(-1, (3, self.heads, -1))
        query, key, value = (parts[:, :, index].transpose(1, 2) for index in range(3))
        attended = F.scaled_dot_product_attention(query, key, value)  # [N, heads, T, width / heads]
        out: Tensor = self.project(attended.transpose(1, 2).flatten(2))
        return out


class ViTBlock(nn.Module):
    """Attention and a two-layer perceptron, each behind a layer norm and around a shortcut; keeps the shape."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.width, spec.epsilon)
        self.attention = Attention(spec)
        self.norm2 = nn.LayerNorm(spec.width, spec.epsilon)
        self.mlp = nn.Sequential(
            nn.Linear(spec.width, spec.mlp_width), nn.GELU(), nn.Linear(spec.mlp_width, spec.width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        out: Tensor = tokens + self.mlp(self.norm2(tokens))
        return out


class ViT(StagedNetwork):
    """Normalised images `[N, C, H, W]` of the spec's size to logits `[N, num_classes]`."""

    spec: ViTSpec

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.spec = spec
        self.patches = nn.Conv2d(spec.channels, spec.width, spec.patch, spec.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.position = nn.Parameter(torch.zeros(1, 1 + spec.grid**2, spec.width))
        self.blocks = nn.Sequential(*(ViTBlock(spec) for _ in range(spec.depth)))
        self.norm = nn.LayerNorm(spec.width, spec.epsilon)
        self.head = nn.Linear(spec.width, spec.num_classes)

    def enter(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)  # [N, grid^2, width], row by row
        tokens: Tensor = torch.cat([self.class_token.expand(images.shape[0], -1, -1), patches], 1) + self.position
        return tokens

    def stage_list(self) -> list[Stage]:
        blocks = iter(self.blocks)
        return [Stage((), blocks_of(islice(blocks, depth))) for depth in self.spec.stage_depths]

    def leave(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits

    def inner_channels(self) -> list[Inner]:
        """Between the two layers of a perceptron."""
        names = [f"blocks.{index}.mlp" for index in range(self.spec.depth)]
        return [Inner((f"{name}.0",), (f"{name}.2",)) for name in names]

    def as_maps(self, x: Tensor) -> Tensor:
        """The tokens of patches as maps `[N, width, grid, grid]`; the class token has no place on them."""
        maps: Tensor = x[:, 1:].transpose(1, 2).unflatten(2, (self.spec.grid, self.spec.grid))
        return maps
