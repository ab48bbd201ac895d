"""A loop in a process of its own: its allocator, its page faults and its memory are nobody else's."""

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from compress.pipeline.device import Compute
from compress.pipeline.settings import Settings
from loops import naive, ours
from loops.peak import Convolution, ConvolutionsOf
from loops.setup import Loop, Setup, load_setup

LOOPS: dict[str, Callable[[Setup], Loop]] = {
    "ours synthesis": ours.Synthesis,
    "naive synthesis": naive.Synthesis,
    "ours distillation": ours.Distillation,
    "naive distillation": naive.Distillation,
}

PROCESS_STATUS, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Timing(NamedTuple):
    """What one unit of work took: wall time, and processor time inside the kernel, in seconds."""

    wall: float
    kernel: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a loop needs: peak memory beside what the process held before, and the work of one unit."""

    peak_bytes: int
    flops: int
    convolutions: dict[Convolution, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker is told."""

    loop: str
    checkpoint: Path
    embeddings: Tensor
    settings: Settings
    pool: int
    threads: int


class Worker:
    """The parent's handle of a loop that runs elsewhere, one unit whenever it is asked to."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection = connection

    def run(self) -> Timing:
        """One unit of work, timed where it ran."""
        self._connection.send("run")
        answer = self._connection.recv()
        return Timing(*answer)

    def finish(self) -> Footprint:
        """Memory so far, and what a last unit, which is counted instead of timed, consists of."""
        self._connection.send("finish")
        footprint: Footprint = self._connection.recv()
        return footprint


@contextmanager
def started(job: Job) -> Iterator[Worker]:
    """A worker that is getting ready, and answers once it is; it ends with the block. Its first unit is for warming up."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=_serve, args=(far, job), daemon=True)
    process.start()
    far.close()
    try:
        yield Worker(near)
    finally:
        near.close()
        process.join(timeout=10)


def _serve(connection: "Connection[Any, Any]", job: Job) -> None:
    torch.set_num_threads(job.threads)
    with TemporaryDirectory() as folder:
        setup = load_setup(job.checkpoint, job.embeddings, job.settings, job.pool, Path(folder))
        before = _forget_peak(setup.compute)
        loop = LOOPS[job.loop](setup)
        try:
            while connection.recv() == "run":
                connection.send(_timed(loop, setup.compute))
            connection.send(_footprint(loop, _peak_bytes(setup.compute) - before))
        except EOFError:
            return  # The parent is gone.


def _timed(loop: Loop, compute: Compute) -> Timing:
    kernel, wall = resource.getrusage(resource.RUSAGE_SELF).ru_stime, time.perf_counter()
    loop.run()
    compute.synchronise()
    return Timing(time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_SELF).ru_stime - kernel)


def _footprint(loop: Loop, peak_bytes: int) -> Footprint:
    with FlopCounterMode(display=False) as counter, ConvolutionsOf() as seen:
        loop.run()
    return Footprint(peak_bytes=peak_bytes, flops=counter.get_total_flops(), convolutions=dict(seen.calls))


def _forget_peak(compute: Compute) -> int:
    """Bytes in use; from here on peaks are counted anew where the system lets us (Linux: proc(5), `clear_refs`)."""
    if compute.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(compute.device)
        return torch.cuda.memory_allocated(compute.device)
    if RESET_PEAK.exists():
        RESET_PEAK.write_text("5")
    return _peak_bytes(compute)


def _peak_bytes(compute: Compute) -> int:
    """Of GPU memory, else of this process's resident memory; `ru_maxrss` would count what a parent held before exec."""
    if compute.device.type == "cuda":
        return torch.cuda.max_memory_allocated(compute.device)
    if PROCESS_STATUS.exists():
        (line,) = (line for line in PROCESS_STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
