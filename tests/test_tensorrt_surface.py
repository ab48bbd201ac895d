"""What the exporter asks of TensorRT's Python module exists in the real one, in every version that targets list.

The bindings of NVIDIA's packages import without a GPU if libraries of the names they want are there; these are stubs that
do nothing, built here. So attributes are proven, not what they do. Needs a C compiler, and an index to install from.
"""

import ast
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from compress.exporters import runners, tensorrt_engine
from compress.exporters.targets import version_numbers

BINDINGS = {
    "8.6.1": "tensorrt-bindings==8.6.1",
    "10.3.0": "tensorrt-cu12-bindings==10.3.0",
    "10.13.3": "tensorrt-cu12-bindings==10.13.3.9",
    "10.16.1": "tensorrt-cu12-bindings==10.16.1.11",
    "11.4.0": "tensorrt-cu12-bindings==11.4.0.106",
}

STUB = """
void *createInferBuilder_INTERNAL(void *l, int v) { return 0; }
void *createInferRefitter_INTERNAL(void *e, void *l, int v) { return 0; }
void *createInferRuntime_INTERNAL(void *l, int v) { return 0; }
void *createNvOnnxParser_INTERNAL(void *n, void *l, int v) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void *r, void *l, int v) { return 0; }
void *getPluginRegistry(void) { return 0; }
void *getBuilderPluginRegistry(int c) { return 0; }
int getInferLibVersion(void) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
_Bool initLibNvInferPlugins(void *l, const char *n) { return 1; }
void *_ZN11nvuffparser15createUffParserEv(void) { return 0; }
void _ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi(void *t, const char *n, const void *d, int k, int l) {}
void *_ZN14nvcaffeparser117createCaffeParserEv(void) { return 0; }
void _ZN14nvcaffeparser123shutdownProtobufLibraryEv(void) {}
"""

CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "engine": "ICudaEngine",
    "error": "ParserError",
    "self._runtime": "Runtime",
    "self._engine": "ICudaEngine",
    "self._context": "IExecutionContext",
}
"""What the variables of the two modules hold."""

IN_CHAINS = {"EngineInspector": ["get_engine_information"], "ITensor": ["name"], "Runtime": ["deserialize_cuda_engine"]}
"""What is asked of objects that have no variable."""

ONLY: dict[str, Callable[[tuple[int, ...]], bool]] = {
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": lambda version: version < (11,),
    "BuilderFlag.FP16": lambda version: version < (11,),
    "BuilderFlag.INT8": lambda version: version < (11,),
    "Builder.platform_has_fast_int8": lambda version: version < (11,),
    "ParserError.node_name": lambda version: version >= (10,),
    "ParserError.node_operator": lambda version: version >= (10,),
}
"""What is there in some versions only; the exporter asks for it in these only. All else must be everywhere."""


def asked_for(module: object) -> Iterator[str]:
    """Attributes, such as `IBuilderConfig.set_flag`, that a module of the exporter touches."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):  # type: ignore[arg-type]
        words = ast.unparse(node).split(".") if isinstance(node, ast.Attribute) else []
        holder, name = ".".join(words[:-1]), words[-1] if words else ""
        if holder in CLASSES and name != "errors":
            yield f"{CLASSES[holder]}.{name}"
        elif words[:1] == ["trt"] and len(words) in (2, 3) and all(word.isidentifier() for word in words):
            yield ".".join(words[1:])
        is_getattr = isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr")
        if is_getattr and isinstance(node, ast.Call) and ast.unparse(node.args[0]) in CLASSES:
            yield f"{CLASSES[ast.unparse(node.args[0])]}.{ast.literal_eval(node.args[1])}"


def surface() -> set[str]:
    named = {name for module in (tensorrt_engine, runners) for name in asked_for(module)}
    return named | {f"{kind}.{name}" for kind, names in IN_CHAINS.items() for name in names}


def test_the_surface_is_found_in_the_source() -> None:
    assert surface() >= {
        "Builder.build_serialized_network",
        "IBuilderConfig.set_timing_cache",
        "MemoryPoolType.WORKSPACE",
        "OnnxParser.parse_from_file",
        "ParserError.node_name",
        "IExecutionContext.execute_async_v3",
        "__version__",
        *ONLY,
    }


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stubs under every name that the bindings want."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("stubs")
    (folder / "stub.c").write_text(STUB)
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", "stub.so", "stub.c"], cwd=folder, check=True)
    for major in (8, 10, 11):
        for name in ("nvinfer", "nvonnxparser", "nvinfer_plugin", "nvparsers"):
            shutil.copy(folder / "stub.so", folder / f"lib{name}.so.{major}")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("version", BINDINGS)
def test_every_attribute_that_the_exporter_touches_is_in_the_real_bindings(
    version: str, libraries: Path, tmp_path: Path
) -> None:
    pip = f"-m pip install --quiet --no-deps --retries 0 --timeout 15 --target {tmp_path} {BINDINGS[version]}"
    installed = subprocess.run([sys.executable, *pip.split()], capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"{BINDINGS[version]} cannot be installed here")
    program = (
        "import json, sys, tensorrt_bindings as trt\n"
        "def has(path):\n"
        "    held = trt\n"
        "    for name in path.split('.'):\n"
        "        if not hasattr(held, name): return False\n"
        "        held = getattr(held, name)\n"
        "    return True\n"
        "print(json.dumps({path: has(path) for path in json.load(sys.stdin)} | {'version': trt.__version__}))\n"
    )
    environment = os.environ | {"LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": str(tmp_path)}
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        input=json.dumps(sorted(surface())),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(told.stdout)
    assert version_numbers(found.pop("version"))[:3] == version_numbers(version)
    expected = {name: name not in ONLY or ONLY[name](version_numbers(version)) for name in surface()}
    assert found == expected
