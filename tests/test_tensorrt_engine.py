"""ONNX to TensorRT engine, with a stand-in for TensorRT."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from compress.exporters import tensorrt_engine
from compress.exporters.half import in_half_precision
from compress.exporters.targets import Target, load_target
from compress.exporters.tensorrt_engine import Graph, build_engine, layer_precisions, read_graph, trtexec_line
from compress.pipeline.errors import CompressError
from tests.fake_tensorrt import FakeTensorRT
from tests.graphs import linear_model, quantized_model

GPU = load_target("nvidia-gpu")
SHAPE = (-1, 3, 32, 32)


def install(monkeypatch: pytest.MonkeyPatch, fake: FakeTensorRT | None, *, cuda: bool = True) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 7))


@pytest.fixture
def int8_onnx(tmp_path: Path) -> Path:
    path = tmp_path / "student.int8.onnx"
    onnx.save(quantized_model(), path)
    return path


def words(name: str, version: str | None = None) -> str:
    _, *arguments = trtexec_line(load_target(name), "student.onnx", "student.plan", SHAPE, version=version)
    return " ".join(arguments)


SHAPES = "--minShapes=images:1x3x32x32 --optShapes=images:1x3x32x32 --maxShapes=images:{}x3x32x32"
CACHE = "--timingCacheFile=student.trt{}.timing.cache"


@pytest.mark.parametrize(
    ("name", "version", "flags", "max_batch", "last"),
    [
        ("jetson-nano-jp4", "8.2", "--fp16 --workspace=512", 4, "--buildOnly"),
        ("jetson-orin-jp5", "8.4.1", "--int8 --fp16 --memPoolSize=workspace:1024", 16, "--buildOnly"),
        ("jetson-orin-jp5", "8.5.2", "--int8 --fp16 --memPoolSize=workspace:1024", 16, "--buildOnly"),
        ("jetson-orin-jp6", "8.6.2", "--int8 --fp16 --memPoolSize=workspace:1024", 16, "--skipInference"),
        ("jetson-orin-jp6", "10.3.0", "--int8 --fp16 --memPoolSize=workspace:1024", 16, "--skipInference"),
    ],
)
def test_the_trtexec_line_suits_each_version(name: str, version: str, flags: str, max_batch: int, last: str) -> None:
    files = "--onnx=student.onnx --saveEngine=student.plan"
    rest = f"{CACHE.format(version)} {SHAPES.format(max_batch)} {last}"
    assert words(name, version) == f"{files} {flags} {rest}"


def test_without_a_version_the_line_is_for_the_newest_that_the_target_lists() -> None:
    assert words("jetson") == words("jetson", "10.3")


def test_a_line_for_the_fp32_file_has_no_int8_and_a_closed_batch_no_shapes() -> None:
    line = trtexec_line(load_target("jetson"), "a.onnx", "a.plan", (1, 3, 32, 32), precision="fp32")
    assert line[0] == "/usr/src/tensorrt/bin/trtexec"
    assert "--fp16" in line
    assert not [word for word in line if word == "--int8" or "Shapes" in word]


@pytest.mark.parametrize(
    ("batch", "dtype", "expected"),
    [
        ("batch", np.float32, Graph((-1, 1, 2, 2), quantized=False, half=False)),
        (4, np.float16, Graph((4, 1, 2, 2), quantized=False, half=True)),
    ],
)
def test_a_graph_says_what_the_builder_has_to_know(
    tmp_path: Path, batch: int | str, dtype: type[np.floating], expected: Graph
) -> None:
    onnx.save(linear_model(batch, dtype), tmp_path / "a.onnx")
    assert read_graph(tmp_path / "a.onnx") == expected


def test_quantized_graphs_are_recognised(int8_onnx: Path) -> None:
    assert read_graph(int8_onnx) == Graph((-1, 1, 4, 4), quantized=True, half=False)


def test_onnx_runtime_needs_no_engine(int8_onnx: Path, tmp_path: Path) -> None:
    record = build_engine(int8_onnx, tmp_path / "student.plan", load_target("cpu-x86"))
    assert not record.built
    assert "No engine is needed" in record.message


@pytest.mark.parametrize("fake", [None, FakeTensorRT("10.3.0", gpu=False), FakeTensorRT("8.4.1")])
def test_where_no_engine_can_be_built_the_record_says_how_the_device_does_it(
    int8_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: FakeTensorRT | None
) -> None:
    install(monkeypatch, fake)
    record = build_engine(int8_onnx, tmp_path / "student.plan", GPU)
    assert (record.built, record.file_name) == (False, None)
    assert record.message.startswith(
        "The TensorRT engine is built on the device: copy the folder there and run deploy/build_engine.sh "
        "(for TensorRT 10: trtexec --onnx=student.int8.onnx --saveEngine=student.plan --int8 --fp16 "
    )
    assert record.message.endswith("; for 11 the typed file without precision flags).")
    (tmp_path / "other").mkdir()
    orin = build_engine(int8_onnx, tmp_path / "other" / "student.plan", load_target("jetson"))
    assert "run deploy/build_engine.sh (trtexec --onnx=student.int8.onnx " in orin.message
    (tmp_path / "other").rmdir()
    assert list(tmp_path.iterdir()) == [int8_onnx]


def test_where_torch_cannot_use_the_gpu_no_engine_is_built_that_could_not_be_validated(
    int8_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, FakeTensorRT("10.3.0"), cuda=False)
    record = build_engine(int8_onnx, tmp_path / "student.plan", GPU)
    assert not record.built
    assert "copy the folder there and run deploy/build_engine.sh" in record.message
    assert list(tmp_path.iterdir()) == [int8_onnx]


@pytest.mark.parametrize(("chip", "built"), [("nvidia,tegra234", True), ("nvidia,tegra194", False), (None, False)])
def test_an_engine_for_a_jetson_is_built_on_that_jetson_only(
    int8_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chip: str | None, built: bool
) -> None:
    device_tree = tmp_path / "compatible"
    if chip:
        device_tree.write_bytes(b"nvidia,p3737-0000\0" + chip.encode() + b"\0")
    monkeypatch.setattr(tensorrt_engine, "_DEVICE_TREE", device_tree)
    install(monkeypatch, FakeTensorRT("8.6.2"))
    assert build_engine(int8_onnx, tmp_path / "student.plan", load_target("jetson")).built is built


@pytest.mark.parametrize(("version", "network_flags"), [("8.6.2", 1), ("10.3.0", 0), ("10.16.1", 0)])
def test_a_quantized_graph_is_built_with_int8_and_fp16(
    int8_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, network_flags: int
) -> None:
    # Explicit batch is bit 0 of the network flags up to 9 and means nothing from 10 on.
    fake = FakeTensorRT(version)
    install(monkeypatch, fake)
    record = build_engine(int8_onnx, tmp_path / "student.plan", GPU)
    assert record.built
    assert fake.calls("create_network") == [(network_flags,)]
    assert fake.calls("parse_from_file") == [(str(int8_onnx),)]
    assert fake.calls("set_flag") == [("fp16",), ("int8",)]
    assert fake.calls("set_memory_pool_limit") == [("workspace", 2048 * 2**20)]
    assert fake.calls("set_shape") == [("images", (1, 1, 4, 4), (1, 1, 4, 4), (64, 1, 4, 4))]
    assert len(fake.calls("add_optimization_profile")) == 1


def test_the_plan_is_written_raw_beside_its_provenance(
    int8_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, FakeTensorRT("10.3.0"))
    record = build_engine(int8_onnx, tmp_path / "student.plan", GPU)
    assert (tmp_path / "student.plan").read_bytes() == b"plan"
    details = json.loads((tmp_path / "student.plan.json").read_text(encoding="utf-8"))
    assert details == record.details
    assert details["tensorrt"] == record.tensorrt_version == "10.3.0"
    assert details["onnx_sha256"] == hashlib.sha256(int8_onnx.read_bytes()).hexdigest()
    assert details["compute_capability"] == "8.7"
    assert details["layers"] == {"fp16": 1, "int8": 2}
    assert record.message == "TensorRT 10.3.0 built student.plan on this machine; layers: 1 fp16, 2 int8."


@pytest.mark.parametrize(("old", "tried"), [(b"old;", [(b"old;",)]), (b"corrupt", [(b"corrupt",), (b"",)])])
def test_timings_of_an_earlier_build_are_used_unless_they_are_broken(
    int8_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bytes, tried: list[tuple[bytes]]
) -> None:
    cache = tmp_path / "student.trt10.3.0.timing.cache"
    cache.write_bytes(old)
    fake = FakeTensorRT("10.3.0")
    install(monkeypatch, fake)
    build_engine(int8_onnx, tmp_path / "student.plan", GPU)
    assert fake.calls("create_timing_cache") == tried
    assert cache.read_bytes() == tried[-1][0] + b"timed;"


def test_tensorrt_11_gets_the_typed_graph_and_no_flag(
    int8_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = tmp_path / "student.int8.typed.onnx"
    onnx.save(in_half_precision(quantized_model(opset=19, ir_version=9)), typed)
    for version, taken, flags in (("11.4.0", typed, []), ("10.16.1", int8_onnx, [("fp16",), ("int8",)])):
        fake = FakeTensorRT(version)
        install(monkeypatch, fake)
        record = build_engine(int8_onnx, tmp_path / "student.plan", GPU, typed)
        assert record.built and record.details["onnx"] == taken.name
        assert fake.calls("parse_from_file") == [(str(taken),)]
        assert fake.calls("create_network") == [(0,)]
        assert fake.calls("set_flag") == flags


def test_the_line_for_tensorrt_11_has_no_precision_flag() -> None:
    line = words("nvidia-gpu", "11.4.0")
    assert "--int8" not in line and "--fp16" not in line and "--skipInference" in line
    assert words("nvidia-gpu") == words("nvidia-gpu", "10")  # the usual file is for those with flags


def test_a_float_graph_with_a_closed_batch_gets_fp16_and_no_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(linear_model(batch=1), tmp_path / "student.onnx")
    fake = FakeTensorRT("10.3.0", int8=False)
    install(monkeypatch, fake)
    assert build_engine(tmp_path / "student.onnx", tmp_path / "student.plan", GPU).built
    assert fake.calls("set_flag") == [("fp16",)]
    assert fake.calls("add_optimization_profile") == []


def test_tensorrt_11_refuses_a_graph_that_leaves_fp16_to_the_builder(
    int8_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, FakeTensorRT("11.1.0"))
    record = build_engine(int8_onnx, tmp_path / "student.plan", GPU)
    assert not record.built
    assert "TensorRT 11.1.0 runs typed graphs only" in record.message
    assert "Use TensorRT 10." in record.message


def test_tensorrt_11_builds_a_typed_graph_without_any_precision_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(linear_model(dtype=np.float16), tmp_path / "student.fp16.onnx")
    fake = FakeTensorRT("11.1.0")
    install(monkeypatch, fake)
    assert build_engine(tmp_path / "student.fp16.onnx", tmp_path / "student.plan", GPU).built
    assert fake.calls("create_network") == [(0,)]
    assert fake.calls("set_flag") == []


def test_a_gpu_without_int8_is_told_so(int8_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeTensorRT("10.3.0", int8=False))
    record = build_engine(int8_onnx, tmp_path / "student.plan", GPU)
    assert not record.built
    assert "no int8 arithmetic" in record.message


@pytest.mark.parametrize(("version", "where"), [("8.6.2", "node 3"), ("10.3.0", "Conv 'first.conv'")])
def test_what_the_parser_does_not_accept_is_listed(
    int8_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, where: str
) -> None:
    errors = [("zero point must be given", "first.conv"), ("axis is wrong", "first.conv")]
    install(monkeypatch, FakeTensorRT(version, parser_errors=errors))
    with pytest.raises(CompressError) as caught:
        build_engine(int8_onnx, tmp_path / "student.plan", GPU)
    assert caught.value.message == (
        f"TensorRT {version} does not accept student.int8.onnx: "
        f"{where}: zero point must be given (UNSUPPORTED_NODE); {where}: axis is wrong (UNSUPPORTED_NODE)"
    )


@pytest.mark.parametrize(
    ("fake", "reason"),
    [
        (FakeTensorRT("8.6.2", builds=False), "no implementation for node conv"),
        (FakeTensorRT("8.6.2", loads=False), "it gave no reason"),
    ],
)
def test_a_build_that_returns_nothing_is_an_error_with_its_reason_and_leaves_no_file(
    int8_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: FakeTensorRT, reason: str
) -> None:
    install(monkeypatch, fake)
    with pytest.raises(CompressError, match=r"could not build an engine from student\.int8\.onnx") as caught:
        build_engine(int8_onnx, tmp_path / "student.plan", GPU)
    assert caught.value.message.endswith(f": {reason}")
    assert "2048 MiB" in caught.value.hint
    assert list(tmp_path.iterdir()) == [int8_onnx]


def test_layers_are_counted_by_what_they_take_in_the_words_of_8_and_10() -> None:
    def layer(words: str) -> dict[str, object]:
        return {"Inputs": [{"Format/Datatype": words}]}

    texts = [
        "Thirty-two wide channel vectorized row major Int8 format",
        "Int8",
        "Channel major FP16 format where channel % 8 == 0",
        "Half",
        "Row major linear FP32",
        "Float",
        "Int32",
    ]
    inspection = json.dumps({"Layers": [*map(layer, texts), {"Inputs": []}, "a name only"]})
    assert layer_precisions(inspection) == {"fp16": 2, "fp32": 2, "int8": 2, "other": 1}


def test_every_tensorrt_target_has_a_line(tmp_path: Path) -> None:
    def line(target: Target) -> list[str]:
        return trtexec_line(target, "student.onnx", "student.plan", SHAPE)

    for name in ("jetson", "jetson-orin-jp5", "jetson-xavier-jp5", "jetson-nano-jp4", "jetson-tx2-jp4", "nvidia-gpu"):
        target = load_target(name)
        assert ("--int8" in line(target)) is (target.shipped == "int8")
        assert "--best" not in line(target)
