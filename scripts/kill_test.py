"""Kills `compress` with SIGKILL at random points of distillation until it ends, and compares what comes out.

    python scripts/kill_test.py TEACHER --labels LABELS [--points 50] [--rounds 10] [--steps 8] [--seed 0]

The same command is run once without a kill, then again and again, killed each time at a point drawn with the seed: when
a checkpoint of that number has appeared, and a moment later. Checkpoints are written after every batch and step here, so
the points fall into synthesis, steps of the student and the writing of files alike.
"""

import argparse
import hashlib
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import compress

RESULTS = ("student.safetensors", "student.last.safetensors", "pool.safetensors", "probes.npz")
SETTINGS = {
    "recipe": "smoke",
    "target": "onnx",
    "device": "cpu",
    "precision": "fp32",
    "threads": "1",
    "distill.checkpoint_seconds": "0",
}


@dataclass(frozen=True, slots=True)
class Kill:
    """One attempt that was ended by SIGKILL."""

    target: int
    """The checkpoint that was waited for."""
    last: int
    """The newest that was there when the process was gone."""
    half_written: bool
    """Whether a file was left that was being written."""
    delay: float
    """Seconds between the checkpoint and the signal."""


def arguments(rounds: int, steps: int) -> list[str]:
    """A run of that many rounds and steps a round, small and the same on every machine."""
    settings = {**SETTINGS, "distill.rounds": str(rounds), "distill.kd_steps": str(steps)}
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def checkpoints(rounds: int, steps: int) -> int:
    """How many such a run writes: one to begin; in a round one a batch, one a step and one at its end."""
    warmup = 1 + 1  # one round of one batch in the recipe
    return 1 + warmup + rounds * (1 + steps + 1)


def draw(points: int, total: int, seed: int) -> list[tuple[int, float]]:
    """Checkpoints to wait for, in their order, and seconds to wait after each."""
    randomness = random.Random(seed)
    return [(target, randomness.uniform(0, 0.05)) for target in sorted(randomness.sample(range(total - 1), points))]


def start(words: Sequence[str | Path], folder: Path) -> subprocess.Popen[bytes]:
    """The command, as a process of its own."""
    code = Path(compress.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "compress.cli", *map(str, words), "-o", str(folder), "-q"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def newest(folder: Path) -> int:
    """Number of the newest checkpoint in an output folder; -1 without one."""
    indexes = (folder / "work" / "3-distill.partial").glob("checkpoint-*.index")
    return max((int(re.findall(r"\d+", path.name)[0]) for path in indexes), default=-1)


def kill(words: Sequence[str | Path], folder: Path, target: int, delay: float) -> Kill | None:
    """Run the command until a checkpoint of that number, at least one of its own, is there; None if it ended before."""
    target = max(target, newest(folder) + 1)
    with start(words, folder) as process:
        while newest(folder) < target:
            if process.poll() is not None:
                return None
            time.sleep(0.002)
        time.sleep(delay)
        process.kill()
        process.wait()
    partial = folder / "work" / "3-distill.partial"
    return Kill(target, newest(folder), any(partial.glob(".*.partial")), delay)


def finish(words: Sequence[str | Path], folder: Path) -> None:
    """Run the command to its end.

    Raises:
        RuntimeError: it failed.
    """
    process = start(words, folder)
    _, stderr = process.communicate()
    if process.returncode not in (0, 4):  # a verdict is no matter here
        raise RuntimeError(stderr.decode())


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of what distillation left in an output folder."""
    stage = folder / "work" / "3-distill"
    return {name: hashlib.sha256((stage / name).read_bytes()).hexdigest() for name in RESULTS}


def main() -> int:
    """Print a table of the kills, and whether the hashes are the same; 0 if so."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    words = [asked.teacher, "--labels", asked.labels, *arguments(asked.rounds, asked.steps)]
    with tempfile.TemporaryDirectory() as work:
        whole, killed = Path(work) / "whole", Path(work) / "killed"
        finish(words, whole)
        print(" kill  waited for  after ms  newest left  file half written")
        points = draw(asked.points, checkpoints(asked.rounds, asked.steps), asked.seed)
        for number, (target, delay) in enumerate(points, start=1):
            made = kill(words, killed, target, delay)
            if made is None:
                print(f"{number:5}  the run had ended")
                break
            half = "yes" if made.half_written else ""
            print(f"{number:5}  {made.target:10}  {1000 * delay:8.1f}  {made.last:11}  {half}", flush=True)
        finish(words, killed)
        expected, found = digests(whole), digests(killed)
    for name in RESULTS:
        print(f"{'same' if found[name] == expected[name] else 'DIFFERENT':9} {name:20} {found[name]}")
    return 0 if found == expected else 1


if __name__ == "__main__":
    sys.exit(main())
