"""ONNX to TensorRT engine, on the machine that will run it; elsewhere, the command that builds it there.

An engine is bound to TensorRT version, GPU and platform, so it cannot be built on a PC for a Jetson.
TensorRT up to 10 gets the int8 graph of fp32 Q/DQ pairs, and flags that say what it may compute in; from 11 on the typed
graph, and none. Source: TensorRT developer guide, "Building an Engine"; the calls below exist unchanged from 8.5 to 11.
"""

import importlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnx as onnx_package
import torch

from compress.exporters.bundle import sha256_of, write_file
from compress.exporters.onnx_graph import INPUT_NAME
from compress.exporters.targets import FIRST_TYPED_ONLY, Precision, Target, version_numbers
from compress.pipeline.errors import CompressError
from compress.pipeline.records import EngineRecord

_DEVICE_TREE = Path("/proc/device-tree/compatible")
_L4T_RELEASE = Path("/etc/nv_tegra_release")
_OLDEST_WITH_NAMED_TENSORS = (8, 5)
_FIRST_WITHOUT_EXPLICIT_BATCH = 10
_TYPES = {"int8": r"\bInt8\b", "fp16": r"\b(Half|FP16)\b", "fp32": r"\b(Float|FP32)\b"}


class Graph(NamedTuple):
    """What the builder has to know of an ONNX file."""

    shape: tuple[int, ...]
    """Of the input, `[N, C, H, W]`, or `[N, H, W, C]` of bytes; -1 where it is open."""
    quantized: bool
    half: bool
    """Whether fp16 is written into the graph, as a strongly typed build demands."""


def read_graph(onnx: Path) -> Graph:
    """Input shape and number types of an ONNX file."""
    graph = onnx_package.load(onnx, load_external_data=False).graph
    dimensions = graph.input[0].type.tensor_type.shape.dim
    types = {weight.data_type for weight in graph.initializer}
    return Graph(
        shape=tuple(dimension.dim_value if dimension.HasField("dim_value") else -1 for dimension in dimensions),
        quantized=any(node.op_type == "QuantizeLinear" for node in graph.node),
        half=onnx_package.TensorProto.FLOAT16 in types,
    )


def profile_shapes(shape: Sequence[int], max_batch: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Smallest, usual and largest input of an open batch: the engine is tuned for one image."""
    one = (1, *shape[1:])
    return one, one, (max_batch, *shape[1:])


def shape_flags(shape: Sequence[int], max_batch: int) -> list[str]:
    """What trtexec has to know of an input of that shape; nothing where no size is open."""
    if shape[0] > 0:
        return []
    sizes = profile_shapes(shape, max_batch)
    return [
        f"--{kind}Shapes={INPUT_NAME}:{'x'.join(map(str, size))}"
        for kind, size in zip(("min", "opt", "max"), sizes, strict=True)
    ]


def load_flags(shape: Sequence[int]) -> list[str]:
    """What trtexec has to know to run an engine on one image."""
    return [] if shape[0] > 0 else [f"--shapes={INPUT_NAME}:{'x'.join(map(str, (1, *shape[1:])))}"]


def takes_typed_only(version: str) -> bool:
    """Whether that TensorRT has no precision flags."""
    return version_numbers(version)[0] >= FIRST_TYPED_ONLY


def precision_flags(target: Target, precision: Precision) -> list[str]:
    """What lets TensorRT up to 10 compute in the types of the graph and, where the target likes it, in fp16."""
    return (["--int8"] if precision == "int8" else []) + (["--fp16"] if target.engine_fp16 else [])


def timing_cache_name(plan_name: str, version: str) -> str:
    """Timings hold for one TensorRT version only."""
    return f"{Path(plan_name).stem}.trt{version}.timing.cache"


def trtexec_line(
    target: Target,
    onnx_name: str,
    plan_name: str,
    shape: Sequence[int],
    *,
    precision: Precision | None = None,
    version: str | None = None,
) -> list[str]:
    """The trtexec call that builds the engine on the device, as a list of words.

    The input `shape` is the file's own, with -1 for an open batch. Without a precision it is the target's most compact
    one, without a version the newest with precision flags that the target lists. From TensorRT 11 on, the file must be
    the typed one.

    Source: NVIDIA/TensorRT, samples/common/sampleOptions.cpp: `--workspace` gave way to `--memPoolSize` in 8.4 and
    `--buildOnly` to `--skipInference` in 8.6.
    """
    version = version or newest_with_flags(target)
    numbers = version_numbers(version)
    flags = [] if takes_typed_only(version) else precision_flags(target, precision or target.shipped)
    return [
        target.trtexec,
        f"--onnx={onnx_name}",
        f"--saveEngine={plan_name}",
        *flags,
        f"--{'memPoolSize=workspace:' if numbers >= (8, 4) else 'workspace='}{target.workspace_mib}",
        f"--timingCacheFile={timing_cache_name(plan_name, version)}",
        *shape_flags(shape, target.max_batch),
        "--skipInference" if numbers >= (8, 6) else "--buildOnly",
    ]


def newest_with_flags(target: Target) -> str:
    """Of the versions that the target lists, the newest that is told by flags what it may compute in, if one is."""
    return next(
        (version for version in reversed(target.tensorrt) if not takes_typed_only(version)), target.tensorrt[-1]
    )


def build_engine(onnx: Path, plan: Path, target: Target, typed: Path | None = None) -> EngineRecord:
    """Builds the engine if this machine is the target's and can also run it; else says how the device builds it.

    From TensorRT 11 on it is built from the `typed` graph. Writes the plan, `<plan>.json` with its provenance and the
    precisions that its layers really run in, and the timing cache.

    Raises:
        CompressError: TensorRT is here and refuses the graph, or cannot build it.
        UsageError: the plan's folder cannot be written.
        MissingResourceError: the disk is full.
    """
    if target.runtime != "tensorrt":
        return _no_engine("No engine is needed: ONNX Runtime runs the ONNX file itself.")
    graph = read_graph(onnx)
    recipe = _no_engine(_recipe(onnx, plan, target, graph))
    # Without CUDA in torch, what is built here could not be validated here.
    trt = find_tensorrt() if _is_here(target) and torch.cuda.is_available() else None
    if trt is None or version_numbers(trt.__version__) < _OLDEST_WITH_NAMED_TENSORS:
        return recipe
    if typed is not None and takes_typed_only(trt.__version__):
        onnx, graph = typed, read_graph(typed)
    logger = _logger(trt)
    try:
        builder = trt.Builder(logger)
    except TypeError:  # the native factory returns null where there is no GPU or no driver
        return recipe
    refusal = _refusal(trt, builder, onnx, target, graph)
    return _no_engine(refusal) if refusal else _build(trt, logger, builder, onnx, plan, target, graph)


def find_tensorrt() -> Any:
    """TensorRT's Python bindings; None where they, or the libraries that they load, are absent."""
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError):
        return None


def layer_precisions(inspection: str) -> dict[str, int]:
    """How many layers compute in which type, from the engine inspector's JSON.

    A layer computes in the type of what it takes: an int8 convolution may well hand out fp16. Layers without input
    and layers without details are left out. The type stands at the end of 8.x texts ("... wide channel vectorized row
    major Int8 format") and alone in 10.x ("Half").
    """
    counts: Counter[str] = Counter()
    for layer in json.loads(inspection)["Layers"]:
        if isinstance(layer, dict) and layer.get("Inputs"):
            words = layer["Inputs"][0].get("Format/Datatype", "")
            counts[next((name for name, pattern in _TYPES.items() if re.search(pattern, words)), "other")] += 1
    return dict(sorted(counts.items()))


def _build(trt: Any, logger: Any, builder: Any, onnx: Path, plan: Path, target: Target, graph: Graph) -> EngineRecord:
    version: str = trt.__version__
    network, parser = _parse(trt, logger, builder, onnx)
    config = _configure(trt, builder, network, target, graph)
    timing_cache = plan.with_name(timing_cache_name(plan.name, version))
    known_timings = timing_cache.read_bytes() if timing_cache.exists() else b""
    cache = config.create_timing_cache(known_timings) or config.create_timing_cache(b"")
    config.set_timing_cache(cache, ignore_mismatch=False)

    serialized = builder.build_serialized_network(network, config)
    del parser  # the network points into it until the engine is built
    engine = None if serialized is None else trt.Runtime(logger).deserialize_cuda_engine(serialized)
    if engine is None:
        raise CompressError(
            f"TensorRT {version} could not build an engine from {onnx.name}: {_listed(logger.errors)}",
            f"If memory ran out, close other programs or lower the workspace (now {target.workspace_mib} MiB).",
        )
    details = _details(trt, engine, onnx, timing_cache)
    write_file(plan, bytes(serialized))
    write_file(timing_cache, bytes(config.get_timing_cache().serialize()))
    write_file(plan.with_name(f"{plan.name}.json"), json.dumps(details, indent=2).encode() + b"\n")
    layers = ", ".join(f"{count} {name}" for name, count in details["layers"].items())
    return EngineRecord(
        built=True,
        file_name=plan.name,
        message=f"TensorRT {version} built {plan.name} on this machine; layers: {layers}.",
        tensorrt_version=version,
        details=details,
    )


def _details(trt: Any, engine: Any, onnx: Path, timing_cache: Path) -> dict[str, Any]:
    inspection = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return {
        "tensorrt": trt.__version__,
        "compute_capability": "{}.{}".format(*torch.cuda.get_device_capability()),
        "l4t": _L4T_RELEASE.read_text(encoding="utf-8").splitlines()[0] if _L4T_RELEASE.exists() else None,
        "onnx": onnx.name,
        "onnx_sha256": sha256_of(onnx),
        "layers": layer_precisions(inspection),
        "timing_cache": timing_cache.name,
    }


def _parse(trt: Any, logger: Any, builder: Any, onnx: Path) -> tuple[Any, Any]:
    """The network, and the parser that owns its weights."""
    explicit_batch = 0
    if version_numbers(trt.__version__)[0] < _FIRST_WITHOUT_EXPLICIT_BATCH:
        explicit_batch = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    network = builder.create_network(explicit_batch)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        errors = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
        raise CompressError(f"TensorRT {trt.__version__} does not accept {onnx.name}: {_listed(errors)}")
    return network, parser


def _configure(trt: Any, builder: Any, network: Any, target: Target, graph: Graph) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, target.workspace_mib << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if not takes_typed_only(trt.__version__):
        if target.engine_fp16:
            config.set_flag(trt.BuilderFlag.FP16)
        if graph.quantized:
            config.set_flag(trt.BuilderFlag.INT8)
    if graph.shape[0] < 0:
        profile = builder.create_optimization_profile()
        profile.set_shape(network.get_input(0).name, *profile_shapes(graph.shape, target.max_batch))
        config.add_optimization_profile(profile)
    return config


def _refusal(trt: Any, builder: Any, onnx: Path, target: Target, graph: Graph) -> str | None:
    """Why this TensorRT or this GPU must not build the graph, though it might try."""
    # A typed build takes fp16 from the graph only; an untyped graph would quietly become a slow fp32 engine.
    if takes_typed_only(trt.__version__) and target.engine_fp16 and not graph.half:
        return (
            f"No engine was built: TensorRT {trt.__version__} runs typed graphs only and {onnx.name} leaves the choice "
            f"of fp16 to the builder. Use TensorRT {newest_with_flags(target)}."
        )
    if graph.quantized and not getattr(builder, "platform_has_fast_int8", True):
        return f"No engine was built: the GPU of this machine has no int8 arithmetic, which {onnx.name} needs."
    return None


def _recipe(onnx: Path, plan: Path, target: Target, graph: Graph) -> str:
    precision: Precision = "int8" if graph.quantized else "fp32"
    _, *arguments = trtexec_line(target, onnx.name, plan.name, graph.shape, precision=precision)
    line = f"trtexec {' '.join(arguments)}"
    if target.typed is not None:  # one line would be wrong for the other version
        line = f"for TensorRT 10: {line}; for 11 the typed file without precision flags"
    return f"The TensorRT engine is built on the device: copy the folder there and run deploy/build_engine.sh ({line})."


def _no_engine(message: str) -> EngineRecord:
    return EngineRecord(built=False, file_name=None, message=message)


def _is_here(target: Target) -> bool:
    """Whether this machine is the target's board; any machine may be a PC with a GPU."""
    if target.soc is None:
        return True
    return _DEVICE_TREE.exists() and target.soc.encode() in _DEVICE_TREE.read_bytes()


def _logger(trt: Any) -> Any:
    """A TensorRT logger that keeps the errors: the builder itself gives no reason when it fails."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(message)

    return Logger()


def _parser_error(error: Any) -> str:
    """One line of an error; its node has a name from TensorRT 10 on."""
    named = hasattr(error, "node_name") and error.node_name()
    where = f"{error.node_operator()} '{error.node_name()}'" if named else f"node {error.node()}"
    return f"{where}: {error.desc()} ({error.code()})"


def _listed(errors: Sequence[str]) -> str:
    return "; ".join(errors) or "it gave no reason"
