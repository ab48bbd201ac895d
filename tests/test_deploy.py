"""The scripts for the device, run here with a stand-in for trtexec."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto

from compress.exporters.bundle import sha256_of, verify_manifest, write_manifest
from compress.exporters.camera_input import with_camera_input
from compress.exporters.deploy import write_deploy
from compress.exporters.half import in_half_precision
from compress.exporters.runners import OnnxRunner
from compress.exporters.targets import Gates, Target, load_target
from compress.exporters.tensorrt_engine import trtexec_line
from compress.pipeline.records import ExportedGraph, InputForm
from tests.graphs import quantized_model

SHELLCHECK = Path(sys.executable).parent / "shellcheck"

# Answers like trtexec: the banner on --help, an engine on --saveEngine, times on --loadEngine, the logits of the test's
# file on --exportOutput.
FAKE_TRTEXEC = """#!/usr/bin/env bash
if [[ $1 == --help ]]; then
    echo "&&&& RUNNING TensorRT.trtexec [TensorRT $FAKE_BANNER] # trtexec --help"
    echo "=== Model Options ==="
    exit 0
fi
if [[ $1 == --loadEngine=*.partial ]]; then
    printf '%s\\n' "$@" >"$FAKE_LOG.timing"
    echo "[11/24/2026-10:00:00] [I] H2D Latency: min = 0.1 ms, max = 0.2 ms, mean = 0.15 ms, median = 0.14 ms"
    [[ -z ${FAKE_TIMES-yes} ]] || echo "[11/24/2026-10:00:00] [I] Latency: min = 0.3 ms, max = 0.9 ms, mean = 0.43 ms, median = 0.42 ms, percentile(99%) = 0.8 ms"
    echo "[11/24/2026-10:00:00] [I] GPU Compute Time: min = 0.2 ms, max = 0.5 ms, mean = 0.3 ms, median = 0.28 ms"
    exit 0
fi
printf '%s\\n' "$@" >>"$FAKE_LOG"
[[ -z ${FAKE_FAILS:-} ]] || { echo "out of memory"; exit 1; }
for argument in "$@"; do
    case $argument in
        --saveEngine=*) echo plan >"${argument#*=}" ;;
        --timingCacheFile=*) echo timings >"${argument#*=}" ;;
        --loadInputs=*) images=${argument#*:} ;;
        --exportOutput=*) "$FAKE_PYTHON" "$FAKE_MODEL" "$images" "${argument#*=}" ;;
    esac
done
"""

# Logits of an engine that names class 0 for dark images and class 2 for bright ones, as trtexec prints them.
FAKE_MODEL = """
import sys, numpy
images = numpy.fromfile(sys.argv[1], dtype=numpy.float32).reshape(-1, 16)
values = ", ".join("nan, 0, 0" if m > 0.99 else f"{1 - m:g}, 0, {m:g}" for m in images.mean(axis=1))
text = '[\\n  { "name" : "logits"\\n  , "dimensions" : "%dx3"\\n  , "values" : [ %s ]\\n  }\\n]\\n'
open(sys.argv[2], "w").write(text % (len(images), values))
"""

# The same of an engine that takes bytes.
FAKE_CAMERA_MODEL = FAKE_MODEL.replace("numpy.float32).reshape(-1, 16)", "numpy.uint8).reshape(-1, 16) / 255")


def unchanged(model: ModelProto) -> ModelProto:
    return model


class Device:
    """A delivered folder on a device whose TensorRT is a stand-in."""

    def __init__(self, root: Path, target: Target, batch: int | None = None, form: InputForm = "float32-nchw") -> None:
        shown, program = (with_camera_input, FAKE_CAMERA_MODEL) if form == "uint8-nhwc" else (unchanged, FAKE_MODEL)
        self.folder = root / "delivered folder"
        self.folder.mkdir()
        self.log = root / "log"
        self.onnx = self.folder / f"student.{target.shipped}.onnx"
        model = quantized_model()
        if batch is not None:
            model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
        onnx.save(shown(model), self.onnx)
        graph = ExportedGraph(
            file_name=self.onnx.name,
            precision=target.shipped,
            input_form=form,
            opset=17,
            ir_version=8,
            size_bytes=self.onnx.stat().st_size,
            sha256=sha256_of(self.onnx),
            max_abs_difference=0.0,
        )
        graphs = [graph]
        if target.typed is not None:
            self.typed = self.folder / "student.int8.typed.onnx"
            onnx.save(shown(in_half_precision(quantized_model(opset=19, ir_version=9))), self.typed)
            sha256, size = sha256_of(self.typed), self.typed.stat().st_size
            renamed = {"file_name": self.typed.name, "sha256": sha256, "size_bytes": size, "typed": True}
            graphs.append(graph.model_copy(update=renamed))
        write_deploy(self.folder, target, graphs)
        programs = root / "bin"
        programs.mkdir()
        (programs / "trtexec").write_text(FAKE_TRTEXEC, encoding="utf-8")
        (programs / "trtexec").chmod(0o755)
        (root / "model.py").write_text(program, encoding="utf-8")
        self.environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "FAKE_LOG": str(self.log),
            "FAKE_BANNER": "v100300",
            "FAKE_PYTHON": sys.executable,
            "FAKE_MODEL": str(root / "model.py"),
        }

    def build(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return self._run([str(self.folder / "deploy" / "build_engine.sh")], environment)

    def replay(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        script = str(self.folder / "deploy" / "replay.py")
        return self._run([sys.executable, script, *arguments], environment)

    def save_probes(self, images: np.ndarray, teacher_logits: np.ndarray) -> None:
        np.savez(self.folder / "probes.npz", images=images, teacher_logits=teacher_logits)

    def asked(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines()

    def _run(self, command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self.environment | environment, capture_output=True, text=True, check=False, cwd="/"
        )


def elsewhere(name: str, **changes: object) -> Target:
    """A target whose trtexec is not at its usual place."""
    return load_target(name).model_copy(update={"trtexec": "/nowhere/trtexec", **changes})


@pytest.fixture
def orin(tmp_path: Path) -> Device:
    return Device(tmp_path, elsewhere("jetson"))


@pytest.mark.parametrize(
    ("name", "banner", "version"),
    [
        ("jetson-nano-jp4", "v8201", "8.2.1"),
        ("jetson-orin-jp5", "v8401", "8.4.1"),
        ("jetson-orin-jp5", "v8502", "8.5.2"),
        ("jetson", "v8602", "8.6.2"),
        ("jetson", "v100300", "10.3.0"),
        ("nvidia-gpu", "v101602] [b10", "10.16.2"),
    ],
)
def test_the_script_asks_trtexec_for_what_the_line_promises(
    tmp_path: Path, name: str, banner: str, version: str
) -> None:
    target = elsewhere(name)
    device = Device(tmp_path, target)
    done = device.build(FAKE_BANNER=banner)
    assert (done.returncode, done.stderr) == (0, "")
    _, *expected = trtexec_line(target, device.onnx.name, "student.plan", (-1, 1, 4, 4), version=version)
    assert device.asked() == [word.replace("student.plan", "student.plan.partial") for word in expected]


def test_the_script_takes_the_typed_file_where_tensorrt_takes_nothing_else(tmp_path: Path) -> None:
    device = Device(tmp_path, elsewhere("jetson-orin-jp7"))
    done = device.build(FAKE_BANNER="v11.4.1.5")
    assert (done.returncode, done.stderr) == (0, "")
    _, *expected = trtexec_line(
        load_target("jetson-orin-jp7"), device.typed.name, "student.plan", (-1, 1, 4, 4), version="11.4.1"
    )
    assert device.asked() == [word.replace("student.plan", "student.plan.partial") for word in expected]
    receipt = json.loads((device.folder / "engine.receipt.json").read_text(encoding="utf-8"))
    assert (receipt["onnx"], receipt["onnx_sha256"]) == (device.typed.name, sha256_of(device.typed))
    device.save_probes(dark_and_bright(4), names_class_0(4))
    assert "agreement with student.int8.typed.onnx: " in device.replay().stdout


def test_the_engine_of_another_version_is_kept(orin: Device) -> None:
    assert orin.build(FAKE_BANNER="v8602").returncode == 0
    older = (orin.folder / "engine.receipt.json").read_bytes()
    (orin.folder / "student.plan").write_bytes(b"older")
    done = orin.build(FAKE_BANNER="v100300")
    assert "The engine of TensorRT 8.6.2 is kept as student.trt8.6.2.plan." in done.stdout
    assert (orin.folder / "student.trt8.6.2.plan").read_bytes() == b"older"
    assert (orin.folder / "engine.trt8.6.2.receipt.json").read_bytes() == older
    again = orin.build(FAKE_BANNER="v100300")
    assert "kept" not in again.stdout and (orin.folder / "student.trt8.6.2.plan").read_bytes() == b"older"


def test_an_engine_of_unknown_origin_is_kept(orin: Device) -> None:
    (orin.folder / "student.plan").write_bytes(b"somebody's")
    assert orin.build().returncode == 0
    (kept,) = orin.folder.glob("student.trtunknown-*.plan")
    assert kept.read_bytes() == b"somebody's"


def test_an_engine_that_compress_built_is_known_by_its_description(orin: Device) -> None:
    (orin.folder / "student.plan").write_bytes(b"built by compress")
    (orin.folder / "student.plan.json").write_text(json.dumps({"tensorrt": "10.3.0.9"}, indent=2), encoding="utf-8")
    names = [path.relative_to(orin.folder).as_posix() for path in orin.folder.rglob("*") if path.is_file()]
    write_manifest(orin.folder, names=names, provenance={})
    assert "kept" not in orin.build(FAKE_BANNER="v100300").stdout  # the same version, told with one number less
    assert verify_manifest(orin.folder) == []
    (orin.folder / "student.plan").write_bytes(b"changed since")
    assert verify_manifest(orin.folder)
    assert orin.build(FAKE_BANNER="v8602").returncode == 0
    assert (orin.folder / "student.trt10.3.0.plan").read_bytes() == b"changed since"


def test_a_build_that_is_interrupted_leaves_nothing(orin: Device) -> None:
    trtexec = Path(orin.environment["PATH"].split(":")[0]) / "trtexec"
    program = trtexec.read_text(encoding="utf-8")
    slow = program.replace("--saveEngine=*) echo plan", "--saveEngine=*) kill -TERM $PPID; sleep 0.2; echo plan")
    trtexec.write_text(slow, encoding="utf-8")
    assert orin.build().returncode == 143
    assert not list(orin.folder.rglob("*.partial"))


def test_an_engine_whose_time_is_not_told_has_a_receipt_all_the_same(orin: Device) -> None:
    done = orin.build(FAKE_TIMES="")
    assert done.returncode == 0
    assert "did not say how long the engine takes" in done.stderr
    assert json.loads((orin.folder / "engine.receipt.json").read_text(encoding="utf-8"))["latency_ms"] is None


@pytest.mark.parametrize("name", ["jetson", "jetson-nano-jp4", "jetson-orin-jp7", "nvidia-gpu"])
def test_the_script_passes_shellcheck_as_posix_shell(tmp_path: Path, name: str) -> None:
    script = Device(tmp_path, load_target(name)).folder / "deploy" / "build_engine.sh"
    assert script.read_text(encoding="utf-8").startswith("#!/bin/sh\n")
    checked = subprocess.run([SHELLCHECK, "--severity=style", script], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_a_built_engine_has_a_receipt_and_leaves_nothing_half_done(orin: Device) -> None:
    done = orin.build(FAKE_BANNER="v8602")
    assert "Built student.plan with TensorRT 8.6.2." in done.stdout
    receipt = json.loads((orin.folder / "engine.receipt.json").read_text(encoding="utf-8"))
    assert receipt.pop("device") and receipt.pop("build_seconds") >= 0
    assert receipt == {
        "l4t": "",
        "tensorrt": "8.6.2",
        "onnx": "student.int8.onnx",
        "onnx_sha256": sha256_of(orin.onnx),
        "plan": "student.plan",
        "plan_sha256": sha256_of(orin.folder / "student.plan"),
        "latency_ms": 0.42,
    }
    assert (orin.log.parent / "log.timing").read_text(encoding="utf-8").splitlines() == [
        "--loadEngine=student.plan.partial",
        "--shapes=images:1x1x4x4",
    ]
    assert not list(orin.folder.rglob("*.partial"))


def test_another_tensorrt_is_a_warning(orin: Device) -> None:
    done = orin.build(FAKE_BANNER="v8502")
    assert done.returncode == 0
    assert "made for TensorRT 8.6 10.3, and the device has 8.5.2" in done.stderr
    assert "--buildOnly" in orin.asked()


def test_a_silent_trtexec_is_taken_for_the_newest_known(orin: Device) -> None:
    done = orin.build(FAKE_BANNER="")
    assert done.returncode == 0
    assert "does not say its TensorRT version; 10.3 is assumed" in done.stderr
    assert "--timingCacheFile=student.trt10.3.0.timing.cache" in orin.asked()


def test_a_silent_trtexec_gets_the_flags_of_the_newest_also_where_only_its_major_version_is_known(
    tmp_path: Path,
) -> None:
    target = elsewhere("nvidia-gpu")
    device = Device(tmp_path, target)
    done = device.build(FAKE_BANNER="")
    assert "10 is assumed" in done.stderr and "made for" not in done.stderr
    _, *expected = trtexec_line(target, device.onnx.name, "student.plan", (-1, 1, 4, 4), version="10.0.0")
    assert set(expected) - set(device.asked()) == {"--saveEngine=student.plan"}  # written aside first


def test_a_graph_of_a_closed_batch_is_built_without_shapes_and_replayed_one_by_one(tmp_path: Path) -> None:
    device = Device(tmp_path, elsewhere("jetson"), batch=1)
    assert device.build().returncode == 0
    assert not [word for word in device.asked() if "Shapes" in word]
    assert json.loads((device.folder / "deploy" / "replay.json").read_text(encoding="utf-8"))["batch"] == 1


def test_a_delivery_verifies_also_after_its_engine_was_built(orin: Device) -> None:
    names = [path.relative_to(orin.folder).as_posix() for path in orin.folder.rglob("*") if path.is_file()]
    write_manifest(orin.folder, names=names, provenance={})
    assert orin.build(FAKE_BANNER="v100300").returncode == 0
    built = {path.name for path in orin.folder.iterdir()} - {*names, "deploy", "manifest.json"}
    assert built == {"student.plan", "engine.receipt.json", "student.trt10.3.0.timing.cache"}
    assert verify_manifest(orin.folder) == []


def test_tensorrt_11_is_refused(orin: Device) -> None:
    done = orin.build(FAKE_BANNER="v11.1.0.106")
    assert done.returncode == 5
    assert "TensorRT 11.1.0 takes typed graphs only" in done.stderr
    assert "Compress again with --target jetson-orin-jp7, or use TensorRT 8.6 or 10.3." in done.stderr
    assert not orin.log.exists()


def test_a_missing_trtexec_is_named(orin: Device) -> None:
    done = orin.build(PATH="/usr/bin:/bin")
    assert done.returncode == 5
    assert "trtexec was not found, neither as /nowhere/trtexec nor on the PATH" in done.stderr
    assert "Install TensorRT 8.6 or 10.3 (sudo apt install nvidia-jetpack)" in done.stderr


def test_an_altered_onnx_file_is_not_built(orin: Device) -> None:
    with orin.onnx.open("ab") as stream:
        stream.write(b"\0")
    done = orin.build()
    assert done.returncode == 3
    assert "student.int8.onnx is not the file that was delivered" in done.stderr
    orin.onnx.unlink()
    assert "student.int8.onnx is missing" in orin.build().stderr
    assert not orin.log.exists()


def test_a_failed_build_keeps_the_old_engine(orin: Device) -> None:
    (orin.folder / "student.plan").write_bytes(b"old")
    done = orin.build(FAKE_FAILS="yes")
    assert done.returncode == 1
    assert "trtexec did not build the engine" in done.stderr
    assert "out of memory" in done.stdout
    assert (orin.folder / "student.plan").read_bytes() == b"old"
    assert not list(orin.folder.rglob("*.partial"))


def dark_and_bright(count: int) -> np.ndarray:
    """Images of one grey each, from black to a bright grey."""
    greys = np.linspace(0, 250, count).astype(np.uint8)
    return np.broadcast_to(greys[:, None, None, None], (count, 1, 4, 4)).copy()


def names_class_0(count: int) -> np.ndarray:
    """Logits of a teacher that always says class 0."""
    return np.eye(3, dtype=np.float32)[np.zeros(count, np.int64)]


def test_the_engine_is_replayed_in_batches_and_compared(orin: Device) -> None:
    # The stand-in names class 2 from a mean of 0.5 on: 10 of these 20 images; a teacher that names 0 always agrees on 10.
    images = dark_and_bright(20)
    orin.save_probes(images, names_class_0(20))
    (orin.folder / "student.plan").write_bytes(b"plan")
    done = orin.replay()
    assert "student.plan: agreement with the teacher: 0.5000 on 20 probes" in done.stdout
    assert "student.plan: agreement with student.int8.onnx: " in done.stdout
    assert done.returncode == 4
    assert "below the limit of 0.9" in done.stderr
    replayed = json.loads((orin.folder / "engine.receipt.json").read_text(encoding="utf-8"))["replay"]
    logits = np.load(orin.folder / "engine.logits.npy")
    assert logits.shape == (20, 3) and logits.dtype == np.float32 and (logits.argmax(1) == 0).sum() == 10
    assert replayed == {
        "plan_sha256": sha256_of(orin.folder / "student.plan"),
        "plan_bytes": 4,
        "onnx": "student.int8.onnx",
        "onnx_sha256": sha256_of(orin.onnx),
        "probes_sha256": sha256_of(orin.folder / "probes.npz"),
        "logits_sha256": sha256_of(orin.folder / "engine.logits.npy"),
        "probes": 20,
        "agreement": 0.5,
    }
    assert [word for word in orin.asked() if word.startswith("--shapes")] == [
        "--shapes=images:16x1x4x4",
        "--shapes=images:4x1x4x4",
    ]


def test_logits_that_are_no_numbers_never_agree(tmp_path: Path) -> None:
    device = Device(tmp_path, elsewhere("jetson", gates=Gates(min_agreement=None)))
    device.save_probes(np.full((4, 1, 4, 4), 255, np.uint8), names_class_0(4))
    (device.folder / "student.plan").write_bytes(b"plan")
    done = device.replay()
    assert "agreement with the teacher: 0.0000 on 4 probes" in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize(("target", "arguments"), [("jetson", ["--onnx"]), ("cpu-arm64", [])])
def test_the_onnx_file_is_replayed_where_it_is_what_runs(tmp_path: Path, target: str, arguments: list[str]) -> None:
    device = Device(tmp_path, load_target(target))
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 4, 4), dtype=np.uint8)
    session = onnxruntime.InferenceSession(device.onnx, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.astype(np.float32) / 255})
    device.save_probes(images, logits)
    done = device.replay(*arguments)
    assert done.stdout == "student.int8.onnx: agreement with the teacher: 1.0000 on 20 probes\n"
    assert done.returncode == 0


def test_an_engine_that_takes_bytes_is_built_and_replayed_with_the_channels_last(tmp_path: Path) -> None:
    device = Device(tmp_path, elsewhere("jetson"), form="uint8-nhwc")
    assert device.build().returncode == 0
    assert [word for word in device.asked() if "Shapes" in word] == [
        "--minShapes=images:1x4x4x1",
        "--optShapes=images:1x4x4x1",
        "--maxShapes=images:16x4x4x1",
    ]
    assert "--shapes=images:1x4x4x1" in (device.log.parent / "log.timing").read_text(encoding="utf-8")
    device.save_probes(dark_and_bright(20), names_class_0(20))
    done = device.replay()
    assert "student.plan: agreement with the teacher: 0.5000 on 20 probes" in done.stdout
    assert "student.plan: agreement with student.int8.onnx: " in done.stdout
    assert [word for word in device.asked() if word.startswith("--shapes")] == [
        "--shapes=images:16x4x4x1",
        "--shapes=images:4x4x4x1",
    ]


@pytest.mark.parametrize("batch", [None, 1])
def test_a_file_that_takes_bytes_is_replayed_to_the_answers_of_the_one_that_takes_numbers(
    tmp_path: Path, batch: int | None
) -> None:
    device = Device(tmp_path, load_target("cpu-arm64"), batch, form="uint8-nhwc")
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 4, 4), dtype=np.uint8)
    onnx.save(quantized_model(), tmp_path / "plain.onnx")
    with OnnxRunner(tmp_path / "plain.onnx") as plain:
        device.save_probes(images, plain(images.astype(np.float32) / np.float32(255)))
    done = device.replay()
    assert (done.stdout, done.returncode) == (
        "student.int8.onnx: agreement with the teacher: 1.0000 on 20 probes\n",
        0,
    )


def test_an_engine_that_is_not_built_or_does_not_run_is_no_agreement(orin: Device) -> None:
    orin.save_probes(dark_and_bright(2), np.zeros((2, 3), np.float32))
    done = orin.replay()
    assert done.returncode == 5
    assert "student.plan is missing; deploy/build_engine.sh builds it" in done.stderr
    (orin.folder / "student.plan").write_bytes(b"plan")
    done = orin.replay(FAKE_FAILS="yes")
    assert done.returncode == 1
    assert "trtexec could not run student.plan:\nout of memory" in done.stderr
    done = orin.replay(PATH="/usr/bin:/bin")
    assert done.returncode == 5
    assert "trtexec was found neither as /nowhere/trtexec nor on the PATH" in done.stderr


def test_onnx_runtime_targets_get_the_replay_only(tmp_path: Path) -> None:
    device = Device(tmp_path, load_target("cpu-x86"))
    assert sorted(path.name for path in (device.folder / "deploy").iterdir()) == ["replay.json", "replay.py"]


def test_the_replay_is_python_3_6(orin: Device) -> None:
    source = (orin.folder / "deploy" / "replay.py").read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 6))
    # Built-in containers take no types there, where a line runs as the file is read.
    subscripts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
    named = {value.id for value in subscripts if isinstance(value, ast.Name)}
    assert not named & {"dict", "list", "tuple", "set", "type"}
    assert not {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & {
        "removeprefix",
        "removesuffix",
    }


def test_names_are_quoted_for_the_shell(tmp_path: Path) -> None:
    device = Device(tmp_path, elsewhere("jetson", trtexec="/opt/$(touch injected)/trtexec"))
    done = device.build()
    assert done.returncode == 0
    assert not list(tmp_path.rglob("injected"))
