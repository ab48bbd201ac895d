"""TorchScript archives, scripted or traced: read in the jail, checked, and built anew from data alone."""

from collections.abc import Mapping

from torch import Tensor

from compress.pipeline.errors import InputError, UnsafeInputError
from compress.pipeline.jail.parent import Jailed, run_jailed
from compress.pipeline.teacher.checkpoint import Checkpoint, Program
from compress.pipeline.teacher.programs.graph import REFUSED_HINT
from compress.pipeline.teacher.programs.guarded import GuardedNetwork, channels_of
from compress.pipeline.teacher.programs.torchscript.answer import CONSTANT, Answer, unpack
from compress.pipeline.teacher.readers.files import HOSTILE_HINT, memory_limit
from compress.pipeline.teacher.readers.weights import tidy

CPU_SECONDS, BYTES_A_SECOND = 5, 20_000_000
"""Computing time for any archive, and how much of a large one is given another second."""

_READER = "compress.pipeline.teacher.programs.torchscript.jailed"

_TRAINING = (
    "'{}' was traced in training mode; it is used as in evaluation, with the running statistics of its batch norms and "
    "without dropout."
)


def read_torchscript(data: bytes | bytearray, name: str, sha256: str) -> Checkpoint:
    """Translate an archive into a program and weights; nothing of it runs in this process.

    A process without rights loads it, in at most 4 x its size + 1 GiB of memory, since torch copies an archive twice
    before it reads it, and in 5 seconds of computing and one more for every 20 MB.

    Args:
        data: the archive.
        name: the file's name, for messages.
        sha256: of the archive.

    Raises:
        InputError: it does what a teacher may not, or its weights are not usable.
        UnsafeInputError: reading it crashed or took too much, or what came out is not what it should be.
    """
    jailed = _read_in_jail(data, name)
    answer = _parsed(jailed.answer, name)
    named = {key: tensor for key, tensor in answer.tensors.items() if not key.startswith(CONSTANT)}
    tidied = tidy(named or answer.tensors, name, memory_limit(len(data)))  # a frozen archive has constants alone
    program = Program(
        network=GuardedNetwork(answer.graph, _in_float32(answer.tensors), name),
        title=f"TorchScript program of {len(answer.graph.operations)} operations",
        input_shape=(None, channels_of(answer.graph, answer.tensors), None, None),
    )
    return Checkpoint(
        file_name=name,
        sha256=sha256,
        format="TorchScript archive",
        tensors=tidied.tensors,
        batches_tracked=tidied.batches_tracked,
        warnings=(*jailed.warnings, *([_TRAINING.format(name)] if answer.training else []), *tidied.notes),
        program=program,
    )


def _read_in_jail(data: bytes | bytearray, name: str) -> Jailed:
    seconds = CPU_SECONDS + len(data) // BYTES_A_SECOND
    try:
        return run_jailed(_READER, data, name=name, memory_bytes=4 * len(data) + 2**30, cpu_seconds=seconds)
    except UnsafeInputError:
        raise
    except InputError as error:  # as the reader refused it
        raise InputError(error.message, REFUSED_HINT) from error


def _parsed(answer: bytearray, name: str) -> Answer:
    """What came out of the jail, which an archive may have made up."""
    try:
        return unpack(answer)
    except Exception as error:  # the parsers raise types of their own; whatever they raise, this is no answer
        raise UnsafeInputError(f"'{name}' gives an answer that cannot be understood.", HOSTILE_HINT) from error


def _in_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
