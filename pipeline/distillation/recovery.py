"""What happens when distillation gets into trouble.

Trouble is met as a new process would meet it: the run goes back to a checkpoint and on from there, under settings that
are eased by what was learned from the trouble. That is written into the checkpoint first, so a run that is killed
afterwards comes to the same end.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

import torch

from compress.pipeline.distillation.checkpoint import Checkpoint, load_checkpoint, remove_checkpoints, save_checkpoint
from compress.pipeline.errors import DivergenceError, MemoryFullError, MissingResourceError, is_out_of_memory
from compress.pipeline.parallel.world import World
from compress.pipeline.progress import Progress
from compress.pipeline.records import Record
from compress.pipeline.settings import Settings

ErrorT = TypeVar("ErrorT", bound=Exception)

SMALLEST_BATCH = 8
"""Images that a batch is halved down to: statistics of fewer would be noise to a batch norm."""

MOST_HALVINGS = 3
"""Times that learning rates are halved before a run is given up."""


class Measures(Record):
    """What trouble has made of the settings."""

    rate_halvings: int = 0
    synthesis_halvings: int = 0
    micro_batches: int = 1
    """Parts that a student step is taken in."""
    notes: tuple[str, ...] = ()
    """What happened, for the report."""

    def noting(self, *notes: str) -> "Measures":
        """With these notes, each of them once."""
        return self.model_copy(update={"notes": tuple(dict.fromkeys((*self.notes, *notes)))})


def eased(settings: Settings, measures: Measures) -> Settings:
    """The settings under which the run goes on: smaller synthetic batches, as many held-out images, lower rates."""
    rate, pieces = 0.5**measures.rate_halvings, 2**measures.synthesis_halvings
    synthesis, distill, probes = settings.synthesis, settings.distill, settings.probes
    return settings.model_copy(
        update={
            "synthesis": synthesis.model_copy(
                update={
                    "batch_size": synthesis.batch_size // pieces,
                    "learning_rate": rate * synthesis.learning_rate,
                }
            ),
            "distill": distill.model_copy(
                update={
                    name: rate * getattr(distill, name)
                    for name in ("learning_rate", "inherited_learning_rate", "final_learning_rate")
                }
            ),
            "probes": probes.model_copy(
                update={name: pieces * getattr(probes, name) for name in ("batches", "monitor_batches")}
            ),
        }
    )


@contextmanager
def memory_for(work: Literal["student", "synthesis"]) -> Iterator[None]:
    """Names the work that the memory did not suffice for.

    Raises:
        MemoryFullError: it did not.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryFullError(work) from error


def without_frames(error: ErrorT) -> ErrorT:
    """The error alone: frames that it came through, and those of its cause, keep tensors from being freed."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _sharing(threads: int, ranks: int) -> str:
    return f"{threads} threads in {ranks} process{'es' if ranks > 1 else ''}"


class Recovery:
    """Where a run continues, and under which measures; says what it does."""

    def __init__(
        self, folder: Path, settings: Settings, progress: Progress, world: World, remarks: tuple[str, ...] = ()
    ) -> None:
        self.folder, self.settings, self.progress, self.world = folder, settings, progress, world
        self.measures = Measures(notes=remarks)

    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint to continue from; None to begin. Its measures are taken over.

        Of several processes, only rank 0 reads it, and tells the others.
        """
        found = self._last() if self.world.leads else None
        numbers = self.world.tell(None if found is None else dict(found.numbers))
        self.measures = Measures.model_validate(self.world.tell(self.measures.model_dump(mode="json")))
        if numbers is None:
            return None
        tensors = self.world.tell_tensors(found.tensors if found else None)
        return found or Checkpoint(tensors=tensors, numbers=numbers, between_rounds=True)

    def _last(self) -> Checkpoint | None:
        found, problems = load_checkpoint(self.folder)
        if problems:
            consequence = "distillation starts over" if found is None else "it goes on from the one before"
            self._note(f"The newest checkpoint could not be used, so {consequence}: {' '.join(problems)}")
        here = (torch.get_num_threads(), self.world.size)
        if found is not None and (found.numbers["threads"], found.numbers["ranks"]) != here:
            before = _sharing(found.numbers["threads"], found.numbers["ranks"])
            self._note(f"Distillation starts over: it was begun with {before}, and sums over {_sharing(*here)} differ.")
            found = None
        if found is None:
            remove_checkpoints(self.folder)
            return None
        self.measures = Measures.model_validate(found.numbers["measures"]).noting(*self.measures.notes)
        return found

    def respond(self, trouble: MemoryFullError | DivergenceError) -> None:
        """Take measures, and let the checkpoint to go back to hold them.

        Out of memory, that is the last one. After a divergence it is the one before the round in which it came: there is
        always one, and which one does not depend on the clock.

        Raises:
            MemoryFullError: batches are as small as they may be, or there are other processes.
            DivergenceError: rates were halved often enough.
        """
        if isinstance(trouble, MemoryFullError) and self.world.size > 1:
            raise trouble  # The other processes wait for this one in the middle of a step.
        diverged = isinstance(trouble, DivergenceError)
        note, update = self._slower(trouble) if isinstance(trouble, DivergenceError) else self._smaller(trouble)
        self.measures = self.measures.model_copy(update=update)
        self._note(note)
        if self.world.leads:
            self._write_measures(between_rounds=diverged)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _write_measures(self, *, between_rounds: bool) -> None:
        found, _ = load_checkpoint(self.folder, between_rounds=between_rounds)
        if found is None:
            remove_checkpoints(self.folder)
        else:
            measures = self.measures.model_dump(mode="json")
            numbers = {**found.numbers, "measures": measures}
            again = Checkpoint(
                tensors=found.tensors, numbers=numbers, between_rounds=found.between_rounds, pool=found.pool
            )
            save_checkpoint(self.folder, again)

    def _smaller(self, trouble: MemoryFullError) -> tuple[str, dict[str, int]]:
        measures = self.measures
        if trouble.work == "synthesis":
            size = self.settings.synthesis.batch_size // 2**measures.synthesis_halvings
            note = f"The memory did not hold a synthetic batch of {size} images: from here on they have {size // 2}."
            update = {"synthesis_halvings": measures.synthesis_halvings + 1}
        else:
            size = self.settings.distill.batch_size // measures.micro_batches
            note = (
                f"The memory did not hold {size} images in a student step: gradients are summed up over parts of "
                f"{size // 2}, and that is what batch norms see at a time."
            )
            update = {"micro_batches": 2 * measures.micro_batches}
        if size // 2 < SMALLEST_BATCH:
            raise MissingResourceError(
                f"The memory does not even hold {size} images.",
                "Take a smaller student with --student, or a smaller generator with --set synthesis.generator_width=16.",
            ) from trouble
        return note, update

    def _slower(self, trouble: DivergenceError) -> tuple[str, dict[str, int]]:
        halvings = self.measures.rate_halvings + 1
        if halvings > MOST_HALVINGS:
            message = f"{trouble.message} Learning rates were halved {MOST_HALVINGS} times before."
            raise DivergenceError(message, trouble.hint)
        note = f"{trouble.message} Back to the end of the round before, rates halved ({halvings} of {MOST_HALVINGS})."
        return note, {"rate_halvings": halvings}

    def _note(self, text: str) -> None:
        self.progress.note(text, "warning")
        self.measures = self.measures.noting(text)
