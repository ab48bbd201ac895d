"""Where and in which arithmetic synthesis and distillation run."""

import hashlib
import os
import platform
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from compress.pipeline.errors import MissingResourceError, UsageError
from compress.pipeline.parallel.world import ALONE, World
from compress.pipeline.settings import Settings

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """A device, whether matrix products may run in bf16, and the processes that share the work."""

    device: torch.device
    bf16: bool
    world: World = ALONE

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision as far as this device has it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def synchronise(self) -> None:
        """Wait for the device, so that a clock measures work rather than queueing."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def title(self) -> str:
        name = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else f"CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
        )
        return f"{name}, {'bf16' if self.bf16 else 'fp32'}"


def choose_compute(settings: Settings) -> Compute:
    """The device and precision that the settings ask for; `auto` takes the first GPU and bf16 where they exist.

    Of several processes on one machine, each takes a GPU of its own, or its share of the CPU's threads.

    Raises:
        MissingResourceError: a GPU was asked for and there is none.
        UsageError: several processes were given one GPU.
    """
    world = World.current()
    wanted = settings.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and world.size > 1:
        wanted = _own_gpu(wanted, world)
    if wanted.startswith("cuda") and not _has_gpu(wanted):
        raise MissingResourceError(f"There is no device '{wanted}' here.", "Leave --device out, or say --device cpu.")
    if threads := _threads(settings.threads, world):
        torch.set_num_threads(threads)
    device = torch.device(wanted)
    if device.type == "cuda" and world.size > 1:
        torch.cuda.set_device(device)
    bf16 = _multiplies_bf16(device) if settings.precision == "auto" else settings.precision == "bf16"
    return Compute(device=device, bf16=bf16, world=world)


def on_device(module: ModuleT, compute: Compute) -> ModuleT:
    """The module on the device, its weights laid out as convolutions like it."""
    module.to(device=compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # absent in its stub
    return module


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A seed for one purpose, far from those of all others: the first 8 bytes of a SHA-256, below 2^63."""
    text = ":".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _own_gpu(wanted: str, world: World) -> str:
    if ":" in wanted and world.local_size > 1:
        raise UsageError(f"{world.local_size} processes cannot share '{wanted}'.", "Leave --device out, or say cuda.")
    return wanted if ":" in wanted else f"cuda:{world.local_rank}"


def _threads(asked: int | None, world: World) -> int | None:
    """CPU threads for this process; None leaves them as they are.

    torchrun sets OMP_NUM_THREADS to 1, so what torch would take by default says nothing about the machine.
    """
    if world.size == 1:
        return asked
    return max((asked or len(os.sched_getaffinity(0))) // world.local_size, 1)


def _has_gpu(name: str) -> bool:
    index = int(name.partition(":")[2] or 0)
    return torch.cuda.is_available() and index < torch.cuda.device_count()


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} logical cores" if names else platform.processor() or platform.machine()
