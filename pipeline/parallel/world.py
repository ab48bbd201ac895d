"""The processes of one run: each takes its share of every step, and together they do what one alone would do.

A step of N processes is the step that one process would take on the joint batch. Each of them computes a loss L_r on
its share; the objective is the mean of the L_r. Where a value of all ranks enters the losses (`World.average`), autograd
lets the gradient of the sum of the L_r through, so that the mean of the ranks' gradients is that of the objective.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor, nn

from compress.pipeline.errors import MissingResourceError


class LostConnection(MissingResourceError):
    """Another process went away in the middle of what all do together."""


@dataclass(frozen=True, slots=True)
class World:
    """Which of how many processes this one is; rank 0 decides and writes. Alone, every method changes nothing."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the processes of its machine."""
    local_size: int = 1

    @classmethod
    def current(cls) -> "World":
        """The processes that this one has joined, see `launch.joined`; itself alone without."""
        if not dist.is_initialized():
            return ALONE
        local = (int(os.environ.get(name, default)) for name, default in (("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1)))
        return cls(dist.get_rank(), dist.get_world_size(), *local)

    @property
    def leads(self) -> bool:
        """Whether this process is the one that decides and writes."""
        return self.rank == 0

    def share(self, count: int) -> int:
        """How many of `count` images are for each process; rounded up, so that all have equally many."""
        return -(-count // self.size)

    def mine(self, joint: Tensor) -> Tensor:
        """This rank's rows of what `gathered` put together."""
        return joint.tensor_split(self.size)[self.rank]

    def own_seed(self) -> tuple[str | int, ...]:
        """What sets a rank's random numbers apart from those of the others; nothing where there are none."""
        return () if self.size == 1 else ("rank", self.rank)

    def average(self, value: Tensor) -> Tensor:
        """Mean over the ranks, which all get; gradients pass through to every rank."""
        if self.size == 1:
            return value
        return _Average.apply(value, self)  # type: ignore[no-any-return, no-untyped-call]

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the ranks, all of them in one message."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.size == 1 or not gradients:
            return
        joint = self.average(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, mean in zip(gradients, joint.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view(gradient.shape))

    @torch.no_grad()
    def copy_from_first(self, module: nn.Module) -> None:
        """Give every rank the weights and buffers of rank 0."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                whole = tensor.contiguous()
                with _connected():
                    dist.broadcast(whole, 0)
                tensor.copy_(whole)

    def gathered(self, mine: Tensor) -> Tensor:
        """Rows of all ranks, equally many each, in their order, on rank 0; the other ranks get back their own."""
        if self.size == 1:
            return mine
        mine = mine.contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.size)] if self.leads else None
        with _connected():
            dist.gather(mine, parts, 0)
        return torch.cat(parts) if parts else mine

    def tell(self, content: Any = None) -> Any:
        """What rank 0 says, as JSON; what the others say is not listened to."""
        if self.size == 1:
            return content
        return json.loads(self._tell(json.dumps(content).encode() if self.leads else b""))

    def tell_tensors(self, tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The tensors of rank 0, on the CPU, for the ranks that have none."""
        if self.size == 1:
            return dict(tensors or {})
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in (tensors or {}).items()}
        return load(self._tell(save(plain) if self.leads else b""))

    def _tell(self, content: bytes) -> bytes:
        with _connected():
            length = torch.tensor([len(content)])
            dist.broadcast(length, 0)
            message = torch.empty(int(length), dtype=torch.uint8)
            if self.leads:
                message.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
            dist.broadcast(message, 0)
        return message.numpy().tobytes()


ALONE = World()


class _Average(torch.autograd.Function):
    """y = sum_r x_r / N; the gradient of sum_r L_r for any x_r is sum_r (dL_r / dy) / N, a mean over the ranks again."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, world: World) -> Tensor:
        ctx.world = world
        total = value.detach().clone(memory_format=torch.contiguous_format)
        with _connected():
            dist.all_reduce(total)
        return total / world.size

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.world.average(gradients[0]), None


@contextmanager
def _connected() -> Iterator[None]:
    """torch says in many ways that a peer has gone, all of them a `RuntimeError`."""
    try:
        yield
    except RuntimeError as error:
        raise LostConnection(
            "The connection to another process of this run was lost.", "The same command continues where it was."
        ) from error
