"""One way to run a model, whatever runs it: torch, ONNX Runtime or TensorRT.

Whoever compares or times models knows runners only.
"""

import statistics
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from compress.exporters.camera_input import ONNX_RUNTIME_BYTES, Bytes, camera_images
from compress.exporters.onnx_graph import INPUT_NAME, OUTPUT_NAME
from compress.exporters.tensorrt_engine import find_tensorrt
from compress.pipeline.errors import CompressError, InputError, MissingResourceError

Images = NDArray[np.float32]
Logits = NDArray[np.float32]

_BATCH_OF_OPEN_GRAPHS = 256
_CUDA = torch.device("cuda")


class Runner(Protocol):
    """A model that is ready to run; a context manager, since most hold native memory."""

    last_seconds: float
    """How long the model took in the last call, copies to a GPU and back included."""

    def __call__(self, images: Images) -> Logits:
        """Logits `[N, K]` of images `[N, C, H, W]`, float32 in [0, 1], whatever form the model takes them in."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Batched(ABC):
    """Feeds a model in batches that it takes: at most `batch` images, or exactly that many where `fixed`; as a camera
    delivers them where it takes `pixels`."""

    def __init__(self, batch: int, *, fixed: bool = False, pixels: bool = False) -> None:
        self.last_seconds = 0.0
        self._batch = batch
        self._fixed = fixed
        self._pixels = pixels

    def __call__(self, images: Images) -> Logits:
        self.last_seconds = 0.0
        starts = range(0, len(images), self._batch)
        logits = np.concatenate([self._timed(images[start : start + self._batch]) for start in starts])
        return logits[: len(images)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _timed(self, images: Images) -> Logits:
        if self._fixed:
            images = _padded(images, self._batch)
        given = camera_images(images) if self._pixels else images
        start = time.perf_counter()
        logits = self._run(given)
        self.last_seconds += time.perf_counter() - start
        return logits

    @abstractmethod
    def _run(self, images: Images | Bytes) -> Logits:
        """Logits of one batch, in the form that the model takes."""

    def _close(self) -> None:  # noqa: B027 - most runners have nothing to give back
        """Gives back native memory."""


def _padded(images: Images, size: int) -> Images:
    """Images `[N, ...]` with the last one repeated up to `[size, ...]`."""
    return np.concatenate([images, np.repeat(images[-1:], size - len(images), axis=0)])


class TorchRunner(_Batched):
    """A torch module, in eval mode, on the device where it is."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(_BATCH_OF_OPEN_GRAPHS)
        self._module = module.eval()
        self._device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))

    @torch.inference_mode()
    def _run(self, images: Images | Bytes) -> Logits:
        logits = self._module(torch.tensor(images, device=self._device))
        return np.asarray(logits.float().cpu().numpy())


class OnnxRunner(_Batched):
    """An ONNX file in ONNX Runtime on the CPU."""

    def __init__(self, path: Path, *, exact: bool = False, threads: int = 0) -> None:
        """Loads the file.

        `exact` runs each operator as the file has it: quantized graphs then round where TensorRT rounds. Zero threads
        leaves their number to ONNX Runtime.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only
        if exact:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        input = self._session.get_inputs()[0]
        self._input = input.name
        fixed = isinstance(input.shape[0], int)
        batch = input.shape[0] if fixed else _BATCH_OF_OPEN_GRAPHS
        super().__init__(batch, fixed=fixed, pixels=input.type == ONNX_RUNTIME_BYTES)

    def _run(self, images: Images | Bytes) -> Logits:
        return np.asarray(self._session.run(None, {self._input: images})[0])

    def _close(self) -> None:
        del self._session


class EngineRunner(_Batched):
    """A TensorRT engine on this machine's GPU, through named tensors (TensorRT 8.5 and later)."""

    def __init__(self, plan: Path) -> None:
        """Loads the engine. A plan is a program: load only what this program built.

        Raises:
            MissingResourceError: TensorRT or a GPU is missing.
            InputError: the plan was built for another TensorRT or GPU.
        """
        trt = find_tensorrt()
        if trt is None or not torch.cuda.is_available():
            raise MissingResourceError(
                f"{plan.name} needs TensorRT and an NVIDIA GPU that torch can use.",
                "On a Jetson without them, deploy/replay.py runs the engine through trtexec.",
            )
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise InputError(
                f"{plan.name} does not load in TensorRT {trt.__version__} on this GPU.",
                "An engine runs only in the TensorRT version and on the kind of GPU that built it; build it here.",
            )
        self._context = self._engine.create_execution_context()
        pixels = self._engine.get_tensor_dtype(INPUT_NAME) == trt.DataType.UINT8
        batch = self._engine.get_tensor_shape(INPUT_NAME)[0]
        if batch > 0:
            super().__init__(batch, fixed=True, pixels=pixels)
        else:
            _, _, largest = self._engine.get_tensor_profile_shape(INPUT_NAME, 0)
            super().__init__(largest[0], pixels=pixels)

    def _run(self, images: Images | Bytes) -> Logits:
        given = torch.tensor(images, device=_CUDA)
        self._context.set_input_shape(INPUT_NAME, tuple(images.shape))
        logits = torch.empty(tuple(self._context.get_tensor_shape(OUTPUT_NAME)), device=_CUDA)
        self._context.set_tensor_address(INPUT_NAME, given.data_ptr())
        self._context.set_tensor_address(OUTPUT_NAME, logits.data_ptr())
        stream = torch.cuda.current_stream()
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise CompressError("TensorRT could not run the engine.", "Its own messages are above.")
        stream.synchronize()
        return np.asarray(logits.cpu().numpy())

    def _close(self) -> None:
        del self._context, self._engine, self._runtime


def median_latency_ms(runner: Runner, image: Images, *, repeats: int, warmup: int, times: int = 1) -> float:
    """Median milliseconds for one image `[1, C, H, W]`, after some runs that do not count.

    Of several `times` the shortest median counts: what else the machine does only ever adds.
    """
    for _ in range(warmup):
        runner(image)
    return min(_median_ms(runner, image, repeats) for _ in range(times))


def _median_ms(runner: Runner, image: Images, repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        runner(image)
        seconds.append(runner.last_seconds)
    return 1000 * statistics.median(seconds)
