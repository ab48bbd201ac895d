"""Programs of a small network as torch.export writes them, and archives of them with something changed."""

import io
import json
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from tests.networks import unsettle

Members = dict[str, bytes]
"""Of an archive, without the folder that they lie in."""

MODEL = "models/model.json"
SAMPLES = "data/sample_inputs/model.pt"
WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"


class Residual(nn.Module):
    """Uses what exporters treat each in their own way: calls in place, views, dropout, ties, a buffer, constants."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(8, eps=1e-3)
        self.tied = nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.tied.weight = self.conv.weight
        self.tied_norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 3)
        self.register_buffer("scale", torch.tensor(1.5))
        self.register_buffer("order", torch.tensor([2, 0, 1]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)), inplace=True)
        branch = F.hardtanh(self.norm(self.conv(x)), -2, 2, inplace=True)
        branch = self.tied_norm(self.tied(branch))
        branch += x
        x = self.pool(branch.relu_())
        x = F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)
        logits: Tensor = self.head(self.drop(x)) * self.scale + torch.tensor([0.1, 0.2, 0.3])
        return logits[:, self.order]


def residual() -> Residual:
    """The same one at every call, its statistics as after 7 batches of training."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = Residual()
        unsettle(network)
    network.tied_norm.register_parameter("weight", None)
    network.tied_norm.register_parameter("bias", None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.num_batches_tracked is not None:
            module.num_batches_tracked.fill_(7)
    return network.eval()


def images(count: int, size: int = 8) -> Tensor:
    """Random images `[count, 3, size, size]`, as the network's author normalised them."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def _any_batch() -> ExportedProgram:
    return export(residual(), (images(2),), dynamic_shapes=({0: Dim("batch")},))


def _any_size() -> ExportedProgram:
    sizes = dict.fromkeys((0, 2, 3), Dim.DYNAMIC)
    return export(residual(), (images(2),), dynamic_shapes=(sizes,))


def _two_images() -> ExportedProgram:
    return export(residual().to(memory_format=torch.channels_last), (images(2),))  # type: ignore[call-overload]


PROGRAMS: dict[str, Callable[[], ExportedProgram]] = {
    "any batch": _any_batch,
    "any size": _any_size,
    "two images": _two_images,
    "one image": lambda: export(residual(), (images(1),)),
    "training": lambda: export(residual().train(), (images(2),)),
    "half precision": lambda: export(residual().half(), (images(2).half(),)),
}
FORMS = (*PROGRAMS, "any batch, decomposed", "two images, decomposed", "training, decomposed")


@cache
def program(form: str) -> ExportedProgram:
    """The residual network's program in that form; `decomposed` behind it means core ATen operators alone."""
    plain, _, is_decomposed = form.partition(", ")
    return decomposed(program(plain)) if is_decomposed else PROGRAMS[plain]()


def decomposed(exported_program: ExportedProgram) -> ExportedProgram:
    """The program in core ATen operators."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
        simple: ExportedProgram = exported_program.run_decompositions()
    return simple


@cache
def exported(form: str = "any batch") -> bytes:
    """The file of such a program."""
    return saved(program(form))


def saved(exported_program: ExportedProgram) -> bytes:
    """What torch.export.save makes of it."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)  # of weights in channels-last order
        torch.export.save(exported_program, buffer)
    return buffer.getvalue()


def members(form: str = "any batch") -> Members:
    """The content of a file of that form."""
    with zipfile.ZipFile(io.BytesIO(exported(form))) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def packed(content: Members, folder: str = "archive/") -> bytes:
    """An archive of such members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, value in content.items():
            archive.writestr(folder + name, value)
    return buffer.getvalue()


def edited(change: Callable[[Any], object], member: str = MODEL, form: str = "any batch") -> bytes:
    """A file in which one document was changed in place."""
    content = members(form)
    document = json.loads(content[member])
    change(document)
    return packed(content | {member: json.dumps(document).encode()})


def graph_edited(change: Callable[[Any], object], form: str = "any batch") -> bytes:
    """A file whose graph was changed in place."""
    return edited(lambda document: change(document["graph_module"]["graph"]), form=form)


def node_of(graph: Any, operator: str) -> Any:
    """The first call of an operator in a graph, such as `conv2d`."""
    return next(node for node in graph["nodes"] if node["target"].split(".")[3] == operator)
