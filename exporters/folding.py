"""Traces a classifier for inference: batch norm folded into its convolutions, identities and dropout gone."""

import copy

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from compress.pipeline.errors import InputError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def fold_batch_norm(model: nn.Module) -> fx.GraphModule:
    """A copy of the model in evaluation mode, as a graph, in which no batch norm follows a convolution.

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", CVPR 2018, section 3.2.

    Raises:
        InputError: the model computes in a way that depends on the values of its input.
    """
    traced = _trace(copy.deepcopy(model).eval())
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op != "call_module":
            continue
        if isinstance(modules[node.target], _IDLE):
            _bypass(node)
        elif isinstance(modules[node.target], _BATCH_NORMS) and _follows_a_convolution(node, modules):
            convolution = node.args[0]
            fused = fuse_conv_bn_eval(modules[convolution.target], modules[node.target])
            traced.set_submodule(convolution.target, fused)
            _bypass(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _trace(model: nn.Module) -> fx.GraphModule:
    try:
        return fx.symbolic_trace(model)
    except (fx.proxy.TraceError, TypeError) as error:
        raise InputError(
            f"The network cannot be traced: {error}", "Its forward method must not branch on the values of its input."
        ) from error


def _bypass(node: fx.Node) -> None:
    node.replace_all_uses_with(node.all_input_nodes[0])
    node.graph.erase_node(node)


def _follows_a_convolution(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the input comes from a convolution that is called once and serves nothing else."""
    (source,) = node.all_input_nodes
    calls = [other for other in node.graph.nodes if other.op == "call_module" and other.target == source.target]
    return (
        source.op == "call_module"
        and isinstance(modules[str(source.target)], _CONVOLUTIONS)
        and len(source.users) == 1
        and len(calls) == 1
    )
