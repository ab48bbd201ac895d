"""What each quantized layer costs: the logits with its rounding alone, against those without any.

Source: Krishnamoorthi, arXiv 1806.08342, section 4; Nagel et al., "A White Paper on Neural Network Quantization", arXiv
2106.08295, section 3.7, where layers are quantized one at a time to find those that break a network.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, fx, nn

from compress.exporters.qdq import ActivationQuantizer, QuantizedConv2d, WeightQuantizer
from compress.pipeline.metrics import sqnr_db, top_k_agreement
from compress.pipeline.records import LayerCost


def layer_costs(module: fx.GraphModule, batches: Sequence[Tensor]) -> tuple[LayerCost, ...]:
    """Every quantized layer of a calibrated network, the costliest first; images `[N, C, H, W]` in [0, 1] in batches.

    A layer's rounding is that of its weights and of the tensor it takes, which others may share.
    """
    with rounding_only(module, ()):
        exact = _logits(module, batches)
    costs = []
    for layer, quantizers in _quantizers_of_layers(module).items():
        with rounding_only(module, quantizers):
            rounded = _logits(module, batches)
        agreement = float(top_k_agreement(exact, rounded).mean())
        costs.append(LayerCost(layer=layer, sqnr_db=sqnr_db(exact, rounded), agreement=agreement))
    return tuple(sorted(costs, key=lambda cost: cost.sqnr_db))


@contextmanager
def rounding_only(module: nn.Module, active: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, no quantizer rounds but those that are `active`."""
    idle = [child for child in module.modules() if isinstance(child, ActivationQuantizer | WeightQuantizer)]
    handles = [
        quantizer.register_forward_hook(lambda _, inputs, __: inputs[0])
        for quantizer in idle
        if quantizer not in active
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _quantizers_of_layers(module: fx.GraphModule) -> dict[str, tuple[nn.Module, ...]]:
    modules = dict(module.named_modules())
    found: dict[str, tuple[nn.Module, ...]] = {}
    for node in module.graph.nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, QuantizedConv2d):
            found[str(node.target)] = modules[str(node.all_input_nodes[0].target)], layer.weight_quantizer
    return found


@torch.no_grad()
def _logits(module: nn.Module, batches: Sequence[Tensor]) -> np.ndarray:
    return np.concatenate([module(batch).float().cpu().numpy() for batch in batches])
