"""The `deploy` folder of a delivery: the script that builds the engine on the device, and the replay of the probes."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import jinja2

from compress.exporters.bundle import write_file
from compress.exporters.targets import FIRST_TYPED_ONLY, Target, load_target, target_names
from compress.exporters.tensorrt_engine import (
    Graph,
    load_flags,
    newest_with_flags,
    precision_flags,
    read_graph,
    shape_flags,
)
from compress.pipeline.records import ExportedGraph

PLAN_NAME = "student.plan"

_TEMPLATES = Path(__file__).parent / "templates"
_REPLAY_BATCH = 16


def write_deploy(folder: Path, target: Target, graphs: Sequence[ExportedGraph]) -> None:
    """Writes `deploy/` into the delivered folder: `build_engine.sh` where TensorRT is the runtime, and the replay.

    The graph that the target ships is the one that is built and replayed; it lies in the folder already.

    Raises:
        UsageError: the folder cannot be written.
        MissingResourceError: the disk is full.
    """
    of_precision = [graph for graph in graphs if graph.precision == target.shipped]
    graph = next(graph for graph in of_precision if not graph.typed)
    typed = next((graph for graph in of_precision if graph.typed), None)
    needs_engine = target.runtime == "tensorrt"
    facts = read_graph(folder / graph.file_name)
    batch = facts.shape[0]
    largest = target.max_batch if needs_engine else _REPLAY_BATCH
    replay = {
        "onnx": graph.file_name,
        "typed_onnx": typed.file_name if typed else None,
        "plan": PLAN_NAME if needs_engine else None,
        "trtexec": target.trtexec,
        "batch": batch if batch > 0 else largest,
        "input_form": graph.input_form,
        "min_agreement": target.gates.min_agreement,
    }
    deploy = folder / "deploy"
    write_file(deploy / "replay.json", json.dumps(replay, indent=2).encode() + b"\n")
    write_file(deploy / "replay.py", _TEMPLATES / "replay.py")
    if needs_engine:
        write_file(deploy / "build_engine.sh", build_script(target, graph, typed, facts).encode())


def _cure(target: Target) -> str:
    """What to do on the same chip where its TensorRT takes typed graphs only."""
    others = (load_target(name) for name in target_names())
    names = [other.name for other in others if other.typed and other.soc == target.soc and other.name != target.name]
    again = f"Compress again with --target {names[0]}, or use" if names else "Use"
    return f"{again} TensorRT {' or '.join(target.tensorrt)}."


def build_script(target: Target, graph: ExportedGraph, typed: ExportedGraph | None, facts: Graph) -> str:
    """The POSIX shell script that builds the engine of that graph on the device.

    Where its TensorRT takes typed graphs only, the engine is that of `typed`. Without Q/DQ pairs, `--int8` would ask for
    ranges that nobody gave.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # a shell script: what goes into it is quoted for the shell
    )
    environment.filters["quote"] = shlex.quote
    return environment.get_template("build_engine.sh.j2").render(
        target=target,
        graph=graph,
        typed=typed,
        first_typed_only=FIRST_TYPED_ONLY,
        cure=_cure(target),
        default_version=newest_with_flags(target),
        precision_flags=precision_flags(target, graph.precision if facts.quantized else "fp32"),
        shape_flags=shape_flags(facts.shape, target.max_batch),
        load_flags=load_flags(facts.shape),
    )
