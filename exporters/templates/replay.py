"""Replays the probes on this device and compares the answers with the teacher's.

    python3 deploy/replay.py           the engine student.plan, through trtexec
    python3 deploy/replay.py --onnx    the ONNX file, through onnxruntime

The engine's answers go into engine.logits.npy, and what they are worth into engine.receipt.json; with these two files,
`compress validate FOLDER --receipt engine.receipt.json` gives the verdict elsewhere.

Exit codes: 0 the agreement reaches the limit; 1 the engine did not run; 4 the agreement is below the limit; 5 something
that is needed is missing.
Needs numpy, and no newer Python than JetPack 4 has (3.6).
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict

import numpy as np

Receipt = Dict[str, Any]

FOLDER = Path(__file__).resolve().parent.parent
RECEIPT, LOGITS = FOLDER / "engine.receipt.json", FOLDER / "engine.logits.npy"


class MissingError(Exception):
    """Something on the device is missing; the text says what."""


class FailedError(Exception):
    """The engine did not run."""


def in_form(form: str, pixels: np.ndarray) -> np.ndarray:
    """Probes, uint8 `[N, C, H, W]`, as the model takes them: bytes `[N, H, W, C]`, or numbers in [0, 1]."""
    if form == "uint8-nhwc":
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    return pixels.astype(np.float32) / np.float32(255)


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
    """Logits `[N, K]` of one batch, in the form that the engine takes; files go through the folder."""
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


def read_receipt(plan: Path) -> Receipt:
    """What `build_engine.sh` wrote about this very engine, else what `compress` did; nothing where neither built it."""
    receipt = read_json(RECEIPT)
    if plan.is_file() and receipt.get("plan_sha256") == sha256_of(plan):
        return receipt
    described = read_json(plan.with_name(plan.name + ".json"))
    return {name: described[name] for name in ("tensorrt", "onnx", "onnx_sha256") if name in described}


def read_json(path: Path) -> Receipt:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def add_to_receipt(receipt: Receipt, plan: Path, onnx: Path, logits: np.ndarray, share: float) -> None:
    """Keep the answers, and of which engine and probes they are. Each file is whole or not there."""
    partial = LOGITS.with_name(LOGITS.name + ".partial")
    with partial.open("wb") as stream:
        np.save(stream, logits, allow_pickle=False)
    partial.replace(LOGITS)
    receipt["replay"] = {
        "plan_sha256": sha256_of(plan),
        "plan_bytes": plan.stat().st_size,
        "onnx": onnx.name,
        "onnx_sha256": sha256_of(onnx),
        "probes_sha256": sha256_of(FOLDER / "probes.npz"),
        "logits_sha256": sha256_of(LOGITS),
        "probes": len(logits),
        "agreement": share,
    }
    partial = RECEIPT.with_name(RECEIPT.name + ".partial")
    partial.write_text(json.dumps(receipt, indent=2) + "\n")
    partial.replace(RECEIPT)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def replay(use_onnx: bool) -> int:
    settings = json.loads((FOLDER / "deploy" / "replay.json").read_text())
    with np.load(str(FOLDER / "probes.npz"), allow_pickle=False) as arrays:
        images = in_form(settings["input_form"], arrays["images"])
        teacher = arrays["teacher_logits"]
    batch, plan = settings["batch"], settings["plan"]
    receipt, typed = read_receipt(FOLDER / (plan or "")), settings["typed_onnx"]
    onnx = FOLDER / (typed if typed and receipt.get("onnx") == typed else settings["onnx"])
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
    if name == plan:
        try:
            add_to_receipt(receipt, FOLDER / plan, onnx, logits, with_teacher)
        except OSError as error:
            print(f"replay.py: the answers could not be kept: {error}", file=sys.stderr)
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
        print(f"replay.py: {error}", file=sys.stderr)
        return 5
    except FailedError as error:
        print(f"replay.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
