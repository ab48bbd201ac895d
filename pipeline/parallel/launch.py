"""Joins the processes that torchrun started, and lets them end together.

The first failure of any process goes to a board, the key-value store by which they found each other. Whoever is waiting
for the failed process sees its connection close, and reads on the board what happened; whoever is not is ended by a
watch. So nobody waits for a process that has gone.
"""

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from compress.pipeline.errors import (
    BudgetError,
    CompressError,
    InputError,
    Interrupted,
    MissingResourceError,
    UsageError,
)
from compress.pipeline.parallel.world import LostConnection, World

JOIN_SECONDS = 300
"""How long the first process waits for the last one."""

LONGEST_WAIT = timedelta(days=7)
"""For a message, while rank 0 exports and validates; a process that has gone is noticed by its silence, not by this."""

TICK_SECONDS = 0.5
GRACE_SECONDS = 3.0
"""After a failure elsewhere, for a process to end by itself."""

SILENCE_SECONDS = 60.0
"""After which a process that gives no sign of life is taken for lost."""

KINDS = (CompressError, UsageError, InputError, MissingResourceError, BudgetError, Interrupted)


class Failure(NamedTuple):
    """How a process ended, in words for the user."""

    rank: int
    exit_code: int
    message: str
    hint: str

    def error(self) -> CompressError:
        """The same failure as another process tells it."""
        kind = next((kind for kind in KINDS if kind.exit_code == self.exit_code), CompressError)
        return kind(f"On rank {self.rank}: {self.message}", self.hint)


class Board:
    """Where processes leave their last words and their signs of life."""

    def __init__(self, store: Store, world: World) -> None:
        self.store, self.world = PrefixStore("compress", store), world

    def report(self, failure: Failure) -> Failure:
        """Leave a failure, unless there is one; the first one is returned."""
        return Failure(*json.loads(self.store.compare_set("failure", "", json.dumps(failure))))

    def failure(self) -> Failure | None:
        """What was reported, if anything was."""
        return Failure(*json.loads(self.store.get("failure"))) if self.store.check(["failure"]) else None

    def beat(self, count: int) -> None:
        """A sign of life."""
        self.store.set(f"alive {self.world.rank}", str(count))

    def beats(self) -> dict[int, bytes]:
        """Of those that this process depends on: all, where it is the first one, else the first one."""
        ranks = range(1, self.world.size) if self.world.leads else range(1)
        return {rank: self.store.get(f"alive {rank}") for rank in ranks if self.store.check([f"alive {rank}"])}


class Watch(threading.Thread):
    """Ends a process that does not end by itself after another one failed or fell silent."""

    def __init__(self, board: Board, end: Callable[[Failure], None]) -> None:
        super().__init__(daemon=True)
        self.board, self.end = board, end
        self.over = threading.Event()
        self._heard: dict[int, bytes] = {}
        self._silent_since: dict[int, int] = {}

    def run(self) -> None:
        count = 0
        while not self.over.wait(TICK_SECONDS):
            count += 1
            failure = self._look(count)
            if failure is not None:
                if not self.over.wait(GRACE_SECONDS):
                    self.end(failure)
                return

    def _look(self, count: int) -> Failure | None:
        try:
            self.board.beat(count)
            lost = self._lost(self.board.beats(), count)
            return self.board.failure() if lost is None else self.board.report(_lost(lost))
        except RuntimeError:  # The store went with the process or the machine that kept it.
            return _lost(0)

    def _lost(self, beats: dict[int, bytes], count: int) -> int | None:
        for rank, beat in beats.items():
            if self._heard.get(rank) != beat:
                self._heard[rank], self._silent_since[rank] = beat, count
            elif (count - self._silent_since[rank]) * TICK_SECONDS > SILENCE_SECONDS:
                return rank
        return None


@contextmanager
def joined(known: Callable[[BaseException], CompressError | None], *, otherwise: Callable[[], None]) -> Iterator[World]:
    """The processes of this run, as torchrun's environment variables describe them; they leave together.

    Args:
        known: the error that a user is told for an exception; None for a defect of the program.
        otherwise: called where this is not the first process.

    Raises:
        UsageError: the environment variables are not all there.
        MissingResourceError: not all processes came.
        CompressError: what another process failed with first.
    """
    board = _board()
    world = board.world
    watch = Watch(board, _exit_now if world.leads else _exit_silently)
    watch.start()
    if not world.leads:
        otherwise()
    try:
        yield world
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # By which torchrun ends the others once one has ended with 4.
        world.average(torch.zeros(1))  # Nobody leaves, and takes the store along, before all have come this far.
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        cause = _cause(error, board, known)
        if not world.leads and isinstance(cause, CompressError):
            # It has said what it had to; ending slowly, it is aborted by the threads of a connection whose other end has gone.
            os._exit(cause.exit_code)
        raise cause from error
    finally:
        watch.over.set()
    dist.destroy_process_group()


def _board() -> Board:
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS)))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=LONGEST_WAIT)
    except ValueError as error:
        raise UsageError(f"Several processes cannot meet: {error}.", "Start them with torchrun.") from error
    except RuntimeError as error:
        hint = "All machines must reach the port of the first one, and start within five minutes."
        raise MissingResourceError("The processes of this run did not find each other.", hint) from error
    return Board(store, World.current())


def _cause(error: BaseException, board: Board, known: Callable[[BaseException], CompressError | None]) -> BaseException:
    """What this process ends with: its own failure, or that of another one if that was the reason."""
    told = known(error)
    secondary = isinstance(told, LostConnection | Interrupted)
    rank = board.world.rank
    mine = (
        Failure(rank, 1, "An internal error.", "".join(traceback.format_exception(error)))
        if told is None
        else Failure(rank, told.exit_code, told.message, told.hint)
    )
    try:
        first = board.report(mine)
    except RuntimeError:
        first = mine
    if first.rank != rank and (secondary or not board.world.leads):
        return first.error()
    return told or error


def _lost(rank: int) -> Failure:
    return Failure(rank, MissingResourceError.exit_code, "The process was lost.", "The same command continues.")


def _exit_now(failure: Failure) -> None:
    sys.stderr.write(f"compress: {failure.error()}\n")
    sys.stderr.flush()
    _exit_silently(failure)


def _exit_silently(failure: Failure) -> None:
    """Without waiting for what the main thread is in; files are written whole or not at all."""
    os._exit(failure.exit_code)
