"""ConvNeXt as the original repository, torchvision, timm and Hugging Face name its tensors."""

import re
from collections import Counter

from compress.pipeline.networks.convnext import EPSILON, ConvNeXtSpec, LayerScale, Pointwise
from compress.pipeline.teacher.families import Candidate, NotInFamily, Shapes
from compress.pipeline.teacher.families.renaming import INDEX, Placed, Rules, place

_FAMILY = "ConvNeXt"

_OURS = rf"""(?x)
    (?: stem\.[01] | stages\.{INDEX}\.downsample\.[01] | norm | head
      | stages\.{INDEX}\.blocks\.{INDEX}\.(?:depthwise|norm|expand|project) ) \.(?:weight|bias)
    | stages\.{INDEX}\.blocks\.{INDEX}\.scale"""

_BLOCK = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\..+")

_AUTHORS: dict[str, Rules] = {
    "the original repository": (
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
        (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.dwconv\.", ".depthwise."),
        (r"\.pwconv1\.", ".expand."),
        (r"\.pwconv2\.", ".project."),
        (r"\.gamma$", ".scale"),
    ),
    "torchvision": (
        (r"^features\.0\.", "stem."),
        # Stages and what lies between them are counted together: 1, 3, 5, 7 and 2, 4, 6.
        (r"^features\.(\d{0,3}[13579])\.", lambda found: f"stages.{int(found[1]) // 2}.blocks."),
        (r"^features\.(\d{0,3}[02468])\.", lambda found: f"stages.{int(found[1]) // 2}.downsample."),
        (r"\.block\.0\.", ".depthwise."),
        (r"\.block\.2\.", ".norm."),
        (r"\.block\.3\.", ".expand."),
        (r"\.block\.5\.", ".project."),
        (r"\.layer_scale$", ".scale"),
        (r"^classifier\.0\.", "norm."),
        (r"^classifier\.2\.", "head."),
    ),
    "timm": (
        (r"\.conv_dw\.", ".depthwise."),
        (r"\.mlp\.fc1\.", ".expand."),
        (r"\.mlp\.fc2\.", ".project."),
        (r"\.gamma$", ".scale"),
        (r"^head\.norm\.", "norm."),
        (r"^head\.fc\.", "head."),
    ),
    "Hugging Face": (
        (r"^convnext\.", ""),
        (r"^embeddings\.patch_embeddings\.", "stem.0."),
        (r"^embeddings\.layernorm\.", "stem.1."),
        (r"^encoder\.", ""),
        (r"\.downsampling_layer\.", ".downsample."),
        (r"^(stages\.\d+)\.layers\.", r"\1.blocks."),
        (r"\.dwconv\.", ".depthwise."),
        (r"\.pwconv1\.", ".expand."),
        (r"\.pwconv2\.", ".project."),
        (r"\.layer_scale_parameter$", ".scale"),
        (r"^(?:(.+)\.)?layernorm\.", lambda found: f"{found[1]}.norm." if found[1] else "norm."),
        (r"^classifier\.", "head."),
    ),
}

_FINAL_EPSILON = {"Hugging Face": 1e-12}
"""Source: `layer_norm_eps` of transformers' ConvNextConfig, which it uses for the last layer norm only."""

_LARGEST_KERNEL = 64


def convnext_candidates(shapes: Shapes) -> list[Candidate]:
    """The one ConvNeXt that such tensors can be.

    Raises:
        NotInFamily: tensors have no place in one, or those that its size is read off are missing or make no sense.
    """
    placed = place(shapes, _FAMILY, _AUTHORS, _OURS)
    spec = _spec(placed)
    return [Candidate(spec, placed.names, _reasons(placed, spec))]


def _spec(placed: Placed) -> ConvNeXtSpec:
    width, channels, *patch = placed.shape("stem.0.weight", 4)
    counts = _blocks_by_stage(placed)
    kernels = [placed.shape(f"stages.{stage}.blocks.0.depthwise.weight", 4) for stage in range(len(counts))]
    first = "stages.0.blocks.0"
    pointwise: Pointwise = "convolution" if len(placed.shapes.get(f"{first}.expand.weight", ())) == 4 else "linear"
    inner = placed.shape(f"{first}.expand.weight", 4 if pointwise == "convolution" else 2)[0]
    return ConvNeXtSpec(
        blocks=tuple(counts[str(stage)] for stage in range(len(counts))),
        widths=tuple(kernel[0] for kernel in kernels),
        patch=_patch(placed, patch),
        kernel=_kernel(placed, kernels[0]),
        expansion=max(inner // width, 1),
        layer_scale=_layer_scale(placed, f"{first}.scale"),
        pointwise=pointwise,
        final_epsilon=_FINAL_EPSILON.get(placed.author, EPSILON),
        channels=channels,
        num_classes=placed.shape("head.weight", 2)[0],
    )


def _blocks_by_stage(placed: Placed) -> Counter[str]:
    """How many blocks each stage has a tensor of."""
    blocks = {(found[1], found[2]) for found in map(_BLOCK.fullmatch, placed.shapes) if found}
    if not blocks:
        raise NotInFamily(_FAMILY, "the checkpoint lacks its blocks", distance=len(placed.shapes))
    return Counter(stage for stage, _ in blocks)


def _patch(placed: Placed, sides: list[int]) -> int:
    """The side of the stem's patches; an odd kernel would overlap, by a stride and a padding that leave no trace."""
    height, width = sides
    if height != width or height > _LARGEST_KERNEL or (height % 2 and height > 1):
        raise placed.misfit(f"the stem is {height}x{width} and does not cut the image into patches", "stem.0.weight")
    return height


def _kernel(placed: Placed, shape: tuple[int, ...]) -> int:
    *_, height, width = shape
    if height != width or height > _LARGEST_KERNEL or not height % 2:
        problem = f"a depthwise convolution is {height}x{width}, not square and odd"
        raise placed.misfit(problem, "stages.0.blocks.0.depthwise.weight")
    return height


def _layer_scale(placed: Placed, name: str) -> LayerScale:
    if name not in placed.shapes:
        return "none"
    return "map" if len(placed.shapes[name]) == 3 else "vector"


def _reasons(placed: Placed, spec: ConvNeXtSpec) -> tuple[str, ...]:
    blocks = " + ".join(str(count) for count in spec.blocks)
    structure = (
        f"The first convolution cuts the image into {spec.patch}x{spec.patch} patches; {len(spec.blocks)} stages of "
        f"{blocks} blocks with {spec.kernel}x{spec.kernel} depthwise convolutions follow."
    )
    return f"The tensors are named as in {placed.author}.", structure
