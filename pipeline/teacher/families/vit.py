"""Vision transformers as torchvision, timm (with DeiT) and Hugging Face name their tensors."""

import math
import re

from compress.pipeline.networks.vit import EPSILON, ViTSpec
from compress.pipeline.teacher.families import Candidate, NotInFamily, Shapes
from compress.pipeline.teacher.families.renaming import INDEX, Placed, Rules, place

_FAMILY = "ViT"

_OURS = rf"""(?x)
    (?: patches | norm | head | blocks\.{INDEX}\.(?:norm[12]|attention\.(?:inputs\.[012]|project)|mlp\.[02]) )
      \.(?:weight|bias)
    | class_token | position"""

_AUTHORS: dict[str, Rules] = {
    "torchvision": (
        (r"^conv_proj\.", "patches."),
        (r"^encoder\.pos_embedding$", "position"),
        (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.self_attention\.in_proj_(weight|bias)$", r".attention.inputs.0.\1"),
        (r"\.self_attention\.out_proj\.", ".attention.project."),
        (r"\.mlp\.linear_1\.", ".mlp.0."),
        (r"\.mlp\.(?:linear_2|3)\.", ".mlp.2."),
        (r"^encoder\.ln\.", "norm."),
        (r"^heads\.(?:head\.|0\.)?", "head."),
    ),
    "timm": (
        (r"^cls_token$", "class_token"),
        (r"^pos_embed$", "position"),
        (r"^patch_embed\.proj\.", "patches."),
        (r"\.attn\.qkv\.", ".attention.inputs.0."),
        (r"\.attn\.proj\.", ".attention.project."),
        (r"\.mlp\.fc1\.", ".mlp.0."),
        (r"\.mlp\.fc2\.", ".mlp.2."),
    ),
    "Hugging Face": (
        (r"^vit\.", ""),
        (r"^embeddings\.cls_token$", "class_token"),
        (r"^embeddings\.position_embeddings$", "position"),
        (r"^embeddings\.patch_embeddings\.projection\.", "patches."),
        (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.attention\.(?:attention\.query|q_proj)\.", ".attention.inputs.0."),
        (r"\.attention\.(?:attention\.key|k_proj)\.", ".attention.inputs.1."),
        (r"\.attention\.(?:attention\.value|v_proj)\.", ".attention.inputs.2."),
        (r"\.attention\.(?:output\.dense|o_proj)\.", ".attention.project."),
        (r"\.(?:intermediate\.dense|mlp\.fc1)\.", ".mlp.0."),
        (r"\.(?:output\.dense|mlp\.fc2)\.", ".mlp.2."),
        (r"^layernorm\.", "norm."),
        (r"^classifier\.", "head."),
    ),
}

_EPSILON = {"Hugging Face": 1e-12}
"""Source: `layer_norm_eps` of transformers' ViTConfig."""

_HEAD_WIDTH = 64
_HEADS = {(1280, 32): 16}
"""Width and depth of the one usual size whose heads are not 64 wide, ViT-H. Source: Dosovitskiy et al., table 1."""

_LARGEST_PATCH = 256


def vit_candidates(shapes: Shapes) -> list[Candidate]:
    """The one vision transformer that such tensors can be, given that the number of its heads is the usual one.

    Raises:
        NotInFamily: tensors have no place in one, or those that its size is read off are missing or make no sense.
    """
    placed = place(shapes, _FAMILY, _AUTHORS, _OURS)
    spec = _spec(placed)
    return [Candidate(spec, placed.names, _reasons(placed, spec), (_assumption(spec),))]


def _spec(placed: Placed) -> ViTSpec:
    width, channels, *patch = placed.shape("patches.weight", 4)
    depth = len({name.split(".")[1] for name in placed.shapes if re.match(r"blocks\.", name)})
    if not depth:
        raise NotInFamily(_FAMILY, "the checkpoint lacks its blocks", distance=len(placed.shapes))
    return ViTSpec(
        patch=_patch(placed, patch),
        grid=_grid(placed),
        width=width,
        depth=depth,
        mlp_width=placed.shape("blocks.0.mlp.0.weight", 2)[0],
        heads=_HEADS.get((width, depth), width // math.gcd(width, _HEAD_WIDTH)),
        attention="separate" if "blocks.0.attention.inputs.1.weight" in placed.shapes else "joint",
        epsilon=_EPSILON.get(placed.author, EPSILON),
        channels=channels,
        num_classes=placed.shape("head.weight", 2)[0],
    )


def _patch(placed: Placed, sides: list[int]) -> int:
    height, width = sides
    if height != width or height > _LARGEST_PATCH:
        raise placed.misfit(f"the patches are {height}x{width} pixels, not square", "patches.weight")
    return height


def _grid(placed: Placed) -> int:
    """Patches a side, from a position for each patch and one for the class token."""
    patches = placed.shape("position", 3)[1] - 1
    grid = math.isqrt(patches)
    if grid < 1 or grid**2 != patches:
        raise placed.misfit(f"{patches} positions and one for the class token do not make a square", "position")
    return grid


def _assumption(spec: ViTSpec) -> str:
    return (
        "The number of attention heads leaves no trace in the weights; "
        f"{spec.heads} heads of {spec.width // spec.heads} channels are assumed, as is usual."
    )


def _reasons(placed: Placed, spec: ViTSpec) -> tuple[str, ...]:
    structure = (
        f"The first convolution cuts the image into {spec.patch}x{spec.patch} patches, and positions for "
        f"{spec.grid}x{spec.grid} of them make {spec.usual_size} px; {spec.depth} layers of width {spec.width} follow."
    )
    return f"The tensors are named as in {placed.author}.", structure
