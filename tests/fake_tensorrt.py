"""A stand-in for TensorRT's Python module: the surface of one version, and a record of what was asked of it.

Members that a version lacks are missing here too, so that code which needs them fails as it would there.
"""

import ctypes
import enum
import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

HALF_LAYER = {"Name": "head", "Inputs": [{"Format/Datatype": "Row major linear FP16 format"}]}
INT8_LAYER = {"Name": "conv", "Inputs": [{"Format/Datatype": "Int8"}], "Outputs": [{"Format/Datatype": "Half"}]}


class FakeTensorRT(SimpleNamespace):
    """One version of the module.

    With `takes_bytes` the engine's input is uint8. `asked` records calls as (name, arguments). `parser_errors` makes the parser fail, `builds=False` the builder,
    `loads=False` the runtime, `gpu=False` the builder's constructor.
    """

    def __init__(
        self,
        version: str,
        *,
        gpu: bool = True,
        int8: bool = True,
        parser_errors: Sequence[tuple[str, str]] = (),
        builds: bool = True,
        loads: bool = True,
        input_shape: tuple[int, ...] = (-1, 1, 4, 4),
        takes_bytes: bool = False,
        model: Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]] | None = None,
    ) -> None:
        super().__init__()
        major = int(version.split(".")[0])
        self.__version__ = version
        self.asked: list[tuple[Any, ...]] = []
        fake = self

        class Logger:
            ERROR = 1

            def __init__(self, *_: object) -> None: ...

        class ILogger:
            Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING"])

        class Network:
            def get_input(self, index: int) -> Any:
                return SimpleNamespace(name="images", shape=input_shape)

        class ParserError:
            def __init__(self, description: str, node: str) -> None:
                self._description, self._node = description, node
                if major >= 10:
                    self.node_name = lambda: node
                    self.node_operator = lambda: "Conv"

            def desc(self) -> str:
                return self._description

            def code(self) -> str:
                return "UNSUPPORTED_NODE"

            def node(self) -> int:
                return 3

        class OnnxParser:
            num_errors = len(parser_errors)

            def __init__(self, network: object, logger: object) -> None: ...

            def parse_from_file(self, path: str) -> bool:
                fake.asked.append(("parse_from_file", path))
                return not parser_errors

            def get_error(self, index: int) -> ParserError:
                return ParserError(*parser_errors[index])

        class TimingCache:
            def __init__(self, content: bytes) -> None:
                self.content = content

            def serialize(self) -> bytes:
                return self.content + b"timed;"

        class Config:
            profiling_verbosity: Any = None

            def set_memory_pool_limit(self, pool: object, size: int) -> None:
                fake.asked.append(("set_memory_pool_limit", pool, size))

            def set_flag(self, flag: object) -> None:
                fake.asked.append(("set_flag", flag))

            def add_optimization_profile(self, profile: object) -> None:
                fake.asked.append(("add_optimization_profile",))

            def create_timing_cache(self, content: bytes) -> TimingCache | None:
                fake.asked.append(("create_timing_cache", content))
                return None if content == b"corrupt" else TimingCache(content)

            def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
                self._cache = cache
                return not ignore_mismatch

            def get_timing_cache(self) -> TimingCache:
                return self._cache

        class Profile:
            def set_shape(self, *arguments: object) -> None:
                fake.asked.append(("set_shape", *arguments))

        class Builder:
            def __init__(self, logger: Any) -> None:
                if not gpu:
                    raise TypeError("pybind11::init(): factory function returned nullptr")
                self._logger = logger
                if major <= 10:
                    self.platform_has_fast_int8 = int8

            def create_network(self, flags: int) -> Network:
                fake.asked.append(("create_network", flags))
                return Network()

            def create_builder_config(self) -> Config:
                return Config()

            def create_optimization_profile(self) -> Profile:
                return Profile()

            def build_serialized_network(self, network: object, config: object) -> bytes | None:
                if not builds:
                    self._logger.log(ILogger.Severity["WARNING"], "tactic skipped")
                    self._logger.log(ILogger.Severity["ERROR"], "no implementation for node conv")
                return b"plan" if builds else None

        class Inspector:
            def get_engine_information(self, form: object) -> str:
                return json.dumps({"Layers": [INT8_LAYER, INT8_LAYER, HALF_LAYER, {"Name": "weights"}, "a name only"]})

        class Context:
            def __init__(self) -> None:
                self.addresses: dict[str, int] = {}
                self.shape: tuple[int, ...] = ()

            def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
                fake.asked.append(("set_input_shape", name, shape))
                self.shape = shape

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return (self.shape[0], 3)

            def set_tensor_address(self, name: str, address: int) -> None:
                self.addresses[name] = address

            def execute_async_v3(self, stream: int) -> bool:
                if model is None:
                    return False
                kind = ctypes.c_uint8 if takes_bytes else ctypes.c_float
                images = as_array(self.addresses["images"], self.shape, kind)
                as_array(self.addresses["logits"], self.get_tensor_shape("logits"))[:] = model(images)
                return True

        class Engine:
            def create_engine_inspector(self) -> Inspector:
                return Inspector()

            def create_execution_context(self) -> Context:
                return Context()

            def get_tensor_dtype(self, name: str) -> str:
                return "uint8" if takes_bytes else "float"

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return input_shape

            def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
                image = input_shape[1:]
                return [(1, *image), (1, *image), (4, *image)]

        class Runtime:
            def __init__(self, logger: object) -> None: ...

            def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
                return Engine() if loads else None

        self.Logger, self.ILogger, self.OnnxParser = Logger, ILogger, OnnxParser
        self.Builder, self.Runtime = Builder, Runtime
        self.DataType = SimpleNamespace(FLOAT="float", UINT8="uint8")
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
        self.LayerInformationFormat = SimpleNamespace(JSON="json")
        self.BuilderFlag = SimpleNamespace(FP16="fp16", INT8="int8") if major <= 10 else SimpleNamespace()
        self.NetworkDefinitionCreationFlag = SimpleNamespace(EXPLICIT_BATCH=0) if major <= 10 else SimpleNamespace()

    def calls(self, name: str) -> list[tuple[Any, ...]]:
        """Arguments of the calls of that name, in order."""
        return [tuple(arguments) for called, *arguments in self.asked if called == name]


def as_array(address: int, shape: tuple[int, ...], kind: Any = ctypes.c_float) -> npt.NDArray[Any]:
    """The array of that shape and kind, float32 by default, at that address."""
    size = int(np.prod(shape))
    return np.ctypeslib.as_array((kind * size).from_address(address)).reshape(shape)
