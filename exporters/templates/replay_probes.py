"""Replays the probes on this device and compares the answers with the teacher's.

    python3 deploy/replay_probes.py           the engine student.plan, through trtexec
    python3 deploy/replay_probes.py --onnx    the ONNX file, through onnxruntime

Exit codes: 0 the agreement reaches the limit; 1 the engine did not run; 4 the agreement is below the limit; 5 something
that is needed is missing.
Needs numpy, and no newer Python than JetPack 4 has (3.6).
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent.parent


class MissingError(Exception):
    """Something on the device is missing; the text says what."""


class FailedError(Exception):
    """The engine did not run."""


def onnx_logits(onnx: Path, images: np.ndarray, batch: int, exact: bool) -> np.ndarray:
    """Logits `[N, K]` of the ONNX file.

    Exact takes each operator as the file has it, so that int8 rounds as it does in TensorRT; otherwise onnxruntime
    fuses them as it does in production.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingError("onnxruntime is not installed (pip install onnxruntime).") from None
    options = onnxruntime.SessionOptions()
    if exact:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
    return np.concatenate(
        [session.run(None, {"images": images[i : i + batch]})[0] for i in range(0, len(images), batch)]
    )


def engine_logits(plan: Path, trtexec: str, images: np.ndarray, batch: int) -> np.ndarray:
    """Logits `[N, K]` of the engine, one run of trtexec a batch."""
    program = shutil.which(trtexec) or shutil.which("trtexec")
    if program is None:
        raise MissingError(f"trtexec was found neither as {trtexec} nor on the PATH.")
    if not plan.is_file():
        raise MissingError(f"{plan.name} is missing; deploy/build_engine.sh builds it.")
    with tempfile.TemporaryDirectory() as folder:
        return np.concatenate(
            [run_trtexec(program, plan, images[i : i + batch], Path(folder)) for i in range(0, len(images), batch)]
        )


def run_trtexec(program: str, plan: Path, images: np.ndarray, folder: Path) -> np.ndarray:
    """Logits `[N, K]` of one batch `[N, C, H, W]`; files go through the folder."""
    taken, given = folder / "images.bin", folder / "logits.json"
    images.tofile(str(taken))
    arguments = [
        f"--loadEngine={plan}",
        f"--loadInputs=images:{taken}",
        f"--shapes=images:{'x'.join(str(size) for size in images.shape)}",
        f"--exportOutput={given}",
        "--iterations=1",
        "--warmUp=0",
        "--duration=0",
    ]
    done = subprocess.run([program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0 or not given.is_file():
        raise FailedError(f"trtexec could not run {plan.name}:\n{done.stdout[-2000:].decode(errors='replace')}")
    # trtexec writes numbers as C++ prints them, and JSON spells what is not a number differently.
    text = given.read_text().replace("-nan", "NaN").replace("nan", "NaN").replace("inf", "Infinity")
    outputs = {output["name"]: output["values"] for output in json.loads(text)}
    given.unlink()
    return np.array(outputs["logits"], dtype=np.float32).reshape(len(images), -1)


def agreement(logits: np.ndarray, others: np.ndarray) -> float:
    """Share of images on which both name the same class; logits that are no numbers agree with nothing."""
    same = logits.argmax(axis=1) == others.argmax(axis=1)
    return float(np.mean(same & np.isfinite(logits).all(axis=1)))


def built_from(usual: str, typed: str) -> str:
    """Name of the ONNX file that the engine was built from, as its receipt says: one of these two."""
    try:
        named = json.loads((FOLDER / "engine.receipt.json").read_text())["onnx"]
    except (OSError, ValueError, KeyError, TypeError):
        return usual
    return typed if named == typed else usual


def replay(use_onnx: bool) -> int:
    settings = json.loads((FOLDER / "deploy" / "replay.json").read_text())
    with np.load(str(FOLDER / "probes.npz"), allow_pickle=False) as arrays:
        images = arrays["images"].astype(np.float32) / np.float32(255)
        teacher = arrays["teacher_logits"]
    batch, plan = settings["batch"], settings["plan"]
    onnx = FOLDER / built_from(settings["onnx"], settings["typed_onnx"])
    if use_onnx or plan is None:
        name, logits = onnx.name, onnx_logits(onnx, images, batch, exact=plan is not None)
    else:
        name, logits = plan, engine_logits(FOLDER / plan, settings["trtexec"], images, batch)
        try:
            share = agreement(logits, onnx_logits(onnx, images, batch, exact=True))
            print(f"{name}: agreement with {onnx.name}: {share:.4f}")
        except MissingError as error:
            print(f"{name}: not compared with {onnx.name}: {error}")
    with_teacher, limit = agreement(logits, teacher), settings["min_agreement"]
    print(f"{name}: agreement with the teacher: {with_teacher:.4f} on {len(images)} probes")
    if limit is None or with_teacher >= limit:
        return 0
    print(f"{name}: below the limit of {limit}", file=sys.stderr)
    return 4


def main() -> int:
    parser = argparse.ArgumentParser(description="Replays the probes on this device.")
    parser.add_argument("--onnx", action="store_true", help="run the ONNX file with onnxruntime instead of the engine")
    try:
        return replay(parser.parse_args().onnx)
    except MissingError as error:
        print(f"replay_probes.py: {error}", file=sys.stderr)
        return 5
    except FailedError as error:
        print(f"replay_probes.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
