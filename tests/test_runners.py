"""Runners: one set of promises for all of them."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from compress.exporters import runners
from compress.exporters.camera_input import with_camera_input
from compress.exporters.runners import EngineRunner, OnnxRunner, Runner, TorchRunner, median_latency_ms
from compress.pipeline.errors import CompressError, InputError, MissingResourceError
from tests.fake_tensorrt import FakeTensorRT
from tests.graphs import linear_model, quantized_model, ramp

Images = NDArray[np.float32]
Make = Callable[[Path], Runner]


def expected(images: Images) -> Images:
    """What `linear_model` computes."""
    return np.asarray(images.reshape(len(images), 4) @ ramp(4, 3))


def images(count: int) -> Images:
    return np.linspace(0, 1, count * 4, dtype=np.float32).reshape(count, 1, 2, 2)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A GPU whose memory is the CPU's."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(runners, "_CUDA", torch.device("cpu"))
    return monkeypatch


def torch_runner(_: Path) -> Runner:
    linear = nn.Linear(4, 3, bias=False)
    linear.weight = nn.Parameter(torch.from_numpy(ramp(4, 3).T.copy()))
    return TorchRunner(nn.Sequential(nn.Flatten(), linear))


def onnx_runner(folder: Path) -> Runner:
    onnx.save(linear_model(), folder / "open.onnx")
    return OnnxRunner(folder / "open.onnx")


def fixed_onnx_runner(folder: Path) -> Runner:
    onnx.save(linear_model(batch=3), folder / "fixed.onnx")
    return OnnxRunner(folder / "fixed.onnx", exact=True, threads=1)


def camera_runner(folder: Path) -> Runner:
    onnx.save(with_camera_input(linear_model()), folder / "camera.onnx")
    return OnnxRunner(folder / "camera.onnx")


def fixed_camera_runner(folder: Path) -> Runner:
    onnx.save(with_camera_input(linear_model(batch=3)), folder / "camera.onnx")
    return OnnxRunner(folder / "camera.onnx", exact=True)


def engine_runner(folder: Path, batch: int = -1) -> Runner:
    (folder / "student.plan").write_bytes(b"plan")
    return EngineRunner(folder / "student.plan")


@pytest.mark.parametrize("make", [torch_runner, onnx_runner, fixed_onnx_runner, engine_runner])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_every_runner_gives_one_row_of_logits_an_image(
    make: Make, count: int, tmp_path: Path, gpu: pytest.MonkeyPatch
) -> None:
    gpu.setitem(sys.modules, "tensorrt", FakeTensorRT("10.3.0", input_shape=(-1, 1, 2, 2), model=expected))
    with make(tmp_path) as runner:
        logits = runner(images(count))
        assert runner.last_seconds > 0
    assert logits.dtype == np.float32
    assert logits.shape == (count, 3)
    np.testing.assert_allclose(logits, expected(images(count)), atol=1e-6)


@pytest.mark.parametrize(("batch", "shapes"), [(-1, [4, 3]), (2, [2, 2, 2, 2])])
def test_an_engine_is_fed_what_its_profile_takes(
    tmp_path: Path, gpu: pytest.MonkeyPatch, batch: int, shapes: list[int]
) -> None:
    # The stand-in's profile reaches to 4 images; seven images are 4 + 3, or 4 pairs with the last one filled up.
    fake = FakeTensorRT("8.6.2", input_shape=(batch, 1, 2, 2), model=expected)
    gpu.setitem(sys.modules, "tensorrt", fake)
    with engine_runner(tmp_path) as runner:
        np.testing.assert_allclose(runner(images(7)), expected(images(7)), atol=1e-6)
    assert [shape[0] for _, shape in fake.calls("set_input_shape")] == shapes


def bytes_of(images: Images) -> Images:
    """Images that a camera can deliver."""
    return np.asarray(np.rint(images * 255) / 255, np.float32)


@pytest.mark.parametrize("make", [camera_runner, fixed_camera_runner])
def test_a_graph_that_takes_bytes_answers_as_the_one_that_takes_numbers(make: Make, tmp_path: Path) -> None:
    given = bytes_of(images(7))
    with make(tmp_path) as runner, onnx_runner(tmp_path) as plain:
        np.testing.assert_array_equal(runner(given), plain(given))


@pytest.mark.parametrize("version", ["8.6.2", "11.4.0"])
def test_an_engine_that_takes_bytes_is_fed_bytes_with_the_channels_last(
    version: str, tmp_path: Path, gpu: pytest.MonkeyPatch
) -> None:
    def from_bytes(pixels: NDArray[np.uint8]) -> Images:
        assert pixels.dtype == np.uint8
        return expected(np.asarray(pixels.transpose(0, 3, 1, 2) / 255, np.float32))

    fake = FakeTensorRT(version, input_shape=(-1, 2, 2, 1), takes_bytes=True, model=from_bytes)
    gpu.setitem(sys.modules, "tensorrt", fake)
    given = bytes_of(images(7))
    with engine_runner(tmp_path) as runner:
        np.testing.assert_allclose(runner(given), expected(given), atol=1e-6)
    assert [shape for _, shape in fake.calls("set_input_shape")] == [(4, 2, 2, 1), (3, 2, 2, 1)]


def test_torch_runs_in_eval_mode_and_without_gradients() -> None:
    with TorchRunner(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(4))) as runner:
        assert np.array_equal(runner(images(2)), runner(images(2)))


def test_read_only_images_are_taken(tmp_path: Path) -> None:
    given = images(2)
    given.setflags(write=False)
    with torch_runner(tmp_path) as runner:
        np.testing.assert_allclose(runner(given), expected(given), atol=1e-6)


def test_exact_runs_quantized_graphs_operator_by_operator(tmp_path: Path) -> None:
    onnx.save(quantized_model(), tmp_path / "int8.onnx")
    given = np.linspace(0, 1, 5 * 16, dtype=np.float32).reshape(5, 1, 4, 4)
    with OnnxRunner(tmp_path / "int8.onnx", exact=True) as exact, OnnxRunner(tmp_path / "int8.onnx") as fused:
        # Scales are 0.01, so one rounding step of an activation is the most that fusing can shift.
        np.testing.assert_allclose(exact(given), fused(given), atol=0.01)


def test_without_tensorrt_an_engine_is_refused_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingResourceError, match="needs TensorRT and an NVIDIA GPU") as caught:
        engine_runner(tmp_path)
    assert "deploy/replay.py" in caught.value.hint


def test_an_engine_of_another_machine_is_refused(tmp_path: Path, gpu: pytest.MonkeyPatch) -> None:
    gpu.setitem(sys.modules, "tensorrt", FakeTensorRT("10.3.0", loads=False))
    with pytest.raises(InputError, match=r"student\.plan does not load in TensorRT 10\.3\.0") as caught:
        engine_runner(tmp_path)
    assert "build it here" in caught.value.hint


def test_an_engine_that_fails_to_run_is_an_error(tmp_path: Path, gpu: pytest.MonkeyPatch) -> None:
    gpu.setitem(sys.modules, "tensorrt", FakeTensorRT("10.3.0", input_shape=(-1, 1, 2, 2)))
    with engine_runner(tmp_path) as runner, pytest.raises(CompressError, match="could not run the engine"):
        runner(images(1))


class Scripted:
    """A runner that takes the times it is told, in milliseconds."""

    def __init__(self, *times_ms: float) -> None:
        self.last_seconds = 0.0
        self._times = list(times_ms)

    def __call__(self, images: Images) -> Images:
        self.last_seconds = self._times.pop(0) / 1000
        return images

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


def test_the_median_latency_leaves_out_the_warm_up() -> None:
    # Warm-up 90 and 80, then 3, 1, 2: the median of the last three is 2.
    assert median_latency_ms(Scripted(90, 80, 3, 1, 2), images(1), repeats=3, warmup=2) == pytest.approx(2.0)


def test_of_several_medians_the_shortest_counts() -> None:
    assert median_latency_ms(
        Scripted(90, 7, 8, 9, 3, 1, 2, 5, 5, 4), images(1), repeats=3, warmup=1, times=3
    ) == pytest.approx(2.0)
