"""Processes as torchrun starts them: what they print, and how they end together."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compress.pipeline.errors import InputError
from tests.command import files_in

ROOT = Path(__file__).parents[2]

FAILING = """
import os, sys, time
from compress.cli import _fall_silent, _known
from compress.pipeline.errors import InputError
from compress.pipeline.parallel.launch import joined
with joined(_known, otherwise=_fall_silent) as world:
    if not world.leads:
        raise {error}
    {rank_0}
"""


def start(*words: str | Path, others: tuple[str | Path, ...] | None = None) -> list[subprocess.Popen[str]]:
    """`python WORDS` as two ranks, in which rank 1 may have words of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    usual = os.environ | meeting | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, words if rank == 0 else others or words)],
            env=usual | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def ended(processes: list[subprocess.Popen[str]], seconds: float = 60) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    try:
        texts = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]


@pytest.mark.parametrize(
    "rank_0",
    ["world.tell_tensors({}); world.gathered(__import__('torch').zeros(1))", "time.sleep(300)"],
    ids=["waiting", "busy"],
)
def test_an_error_of_one_rank_ends_all_with_one_sentence(rank_0: str) -> None:
    script = FAILING.format(error='InputError("The file is odd.", "Give another.")', rank_0=rank_0)
    started = time.monotonic()
    (code, _, told), (other_code, *silence) = ended(start("-c", script))
    assert "On rank 1: The file is odd." in told
    assert silence == ["", ""]
    assert code != 0 != other_code
    if "sleep" in rank_0:  # The watch ends it; waiting, this script without the command's manners ends in a traceback.
        assert (code, told) == (InputError.exit_code, "compress: On rank 1: The file is odd.\nGive another.\n")
    assert time.monotonic() - started < 45


def test_a_file_that_one_machine_lacks_ends_the_command_everywhere(
    teacher_file: Path, labels_file: Path, tmp_path: Path
) -> None:
    options = (
        "--labels",
        labels_file,
        "--recipe",
        "smoke",
        "--target",
        "onnx",
        "--device",
        "cpu",
        "-o",
        tmp_path / "out",
    )
    absent = ("-m", "compress", tmp_path / "absent.pt", *options)
    (code, out, told), other = ended(start("-m", "compress", teacher_file, *options, others=absent), 120)
    assert (code, out) == (2, "")
    (sentence,) = (line for line in told.splitlines() if line.startswith("compress: "))
    assert sentence.startswith("compress: On rank 1: ") and "absent.pt" in sentence
    assert "Traceback" not in told
    assert other == (2, "", "")


@pytest.mark.slow
def test_torchrun_runs_the_whole_command(teacher_file: Path, labels_file: Path, tmp_path: Path) -> None:
    words = ["--standalone", "--nproc-per-node", "2", "-m", "compress", teacher_file, "--labels", labels_file]
    words += ["--recipe", "smoke", "--target", "onnx", "--device", "cpu", "--json", "-o", tmp_path / "out"]
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    run = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=300)
    result = json.loads(run.stdout)
    assert run.returncode == (0 if result["verdict"] == "PASS" else 1)
    if run.returncode:
        assert run.stderr.count("exitcode  : 4") == 2  # both ranks end as the command does
    assert run.stderr.count("[3/7] distill") == 1
    assert {"manifest.json", "student.onnx"} <= files_in(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "work" / "3-distill" / "stage.json").read_text())["record"]
    assert record["ranks"] == 2
