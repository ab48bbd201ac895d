"""The `compress` command inside the tests' own process, and something small for it to work on."""

from pathlib import Path

import torch
import torch.nn.functional as F
from typer.testing import CliRunner, Result

from compress.cli import app
from tests.tiny import tiny_teacher

LABELS = ("circle", "square", "triangle", "star")


def compress(*words: str | Path) -> Result:
    """Run the command; `exit_code`, `stdout` and `stderr` say what came of it."""
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="compress")


def save_teacher(path: Path) -> Path:
    """A training checkpoint of a tiny grey-image teacher, random but sure of itself: on smooth noise every logit has
    mean 0 and standard deviation 3, so that all classes are named and the probes can carry a verdict."""
    teacher = tiny_teacher(channels=1, blocks=(4, 4))
    network = teacher.network.eval()
    images = F.avg_pool2d(torch.rand(256, 1, 10, 10, generator=torch.Generator().manual_seed(0)), 3, 1)
    classifier = network.get_submodule("network.fc")
    assert isinstance(classifier, torch.nn.Linear)
    with torch.no_grad():
        classifier.weight.mul_((3 / network(images).std(0))[:, None])
        classifier.bias.sub_(network(images).mean(0))
    record = teacher.record.input
    content = {
        "state_dict": network.get_submodule("network").state_dict(),
        "input_size": record.height,
        "mean": record.mean,
        "std": record.std,
    }
    torch.save(content, path)
    return path


def files_in(folder: Path) -> set[str]:
    """Names of all files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
