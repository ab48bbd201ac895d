"""One set of weights in every format that a teacher may come in: the same logits, batch-norm inputs and gradients."""

import json
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.teacher import Teacher, open_teacher
from compress.pipeline.teacher.reading import read_checkpoint
from tests.teacher.small_resnet import SmallResNet, small_resnet

MEAN, STD, SIZE = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), 32

HUGGING_FACE_NAMES = [
    # patterns of our names and what the same tensors are called in transformers' ResNet
    (r"^conv1", "resnet.embedder.embedder.convolution"),
    (r"^bn1", "resnet.embedder.embedder.normalization"),
    (r"^layer(\d)\.(\d)\.", lambda found: f"resnet.encoder.stages.{int(found[1]) - 1}.layers.{found[2]}."),
    (r"\.conv(\d)", lambda found: f".layer.{int(found[1]) - 1}.convolution"),
    (r"\.bn(\d)", lambda found: f".layer.{int(found[1]) - 1}.normalization"),
    (r"downsample\.0", "shortcut.convolution"),
    (r"downsample\.1", "shortcut.normalization"),
    (r"^fc", "classifier.1"),
]


def weights() -> dict[str, Tensor]:
    return dict(small_resnet().state_dict())


def example() -> Tensor:
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@contextmanager
def deprecations_ignored() -> Iterator[None]:
    """TorchScript is on its way out of torch; customers' files are not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
        yield


def state_dict(folder: Path) -> Path:
    torch.save(weights(), folder / "weights.pt")
    return folder / "weights.pt"


def training_checkpoint(folder: Path) -> Path:
    network = small_resnet()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9).state_dict()
    inner = {f"module._orig_mod.{name}": tensor for name, tensor in weights().items()}
    torch.save({"epoch": 3, "model": {"state_dict": inner}, "optimizer": optimizer}, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def legacy(folder: Path) -> Path:
    torch.save({"state_dict": weights()}, folder / "old.th", _use_new_zipfile_serialization=False)
    return folder / "old.th"


def safetensors(folder: Path) -> Path:
    save_file(weights(), folder / "model.safetensors")
    return folder / "model.safetensors"


def sharded_safetensors(folder: Path) -> Path:
    names = sorted(weights())
    parts = {"part-1.safetensors": names[::2], "part-2.safetensors": names[1::2]}
    for file_name, part in parts.items():
        save_file({name: weights()[name] for name in part}, folder / file_name)
    where = {name: file_name for file_name, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder / "model.safetensors.index.json"


def scripted(folder: Path) -> Path:
    with deprecations_ignored():
        torch.jit.script(small_resnet()).save(str(folder / "scripted.pt"))
    return folder / "scripted.pt"


def traced(folder: Path) -> Path:
    with deprecations_ignored():
        torch.jit.trace(small_resnet(), example()).save(str(folder / "traced.pt"))
    return folder / "traced.pt"


def exported(folder: Path) -> Path:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(small_resnet(), (example(),), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "exported.pt")  # a name that says nothing
    return folder / "exported.pt"


def onnx(folder: Path) -> Path:
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
        torch.onnx.export(
            small_resnet(),
            (example(),),
            folder / "network.onnx",
            dynamic_shapes=({0: batch},),
            optimize=False,  # which would fold the batch norms into the convolutions
            external_data=False,
            verbose=False,
        )
    return folder / "network.onnx"


def hugging_face_folder(folder: Path) -> Path:
    def renamed(name: str) -> str:
        for pattern, replacement in HUGGING_FACE_NAMES:
            name = re.sub(pattern, replacement, name)  # type: ignore[call-overload]
        return name

    config = {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 2],
        "layer_type": "basic",
        "id2label": {str(index): f"thing {index}" for index in range(5)},
    }
    processor = {"image_mean": MEAN, "image_std": STD, "size": {"height": SIZE, "width": SIZE}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    save_file({renamed(name): tensor for name, tensor in weights().items()}, folder / "model.safetensors")
    return folder


def pickled_module(folder: Path) -> Path:
    torch.save(small_resnet(), folder / "module.pt")
    return folder / "module.pt"


FORMATS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "state_dict": (state_dict, {}),
    "training checkpoint": (training_checkpoint, {}),
    "format before 1.6": (legacy, {}),
    "safetensors": (safetensors, {}),
    "sharded safetensors": (sharded_safetensors, {}),
    "TorchScript, scripted": (scripted, {}),
    "TorchScript, traced": (traced, {}),
    "torch.export": (exported, {}),
    "ONNX": (onnx, {}),
    "Hugging Face folder": (hugging_face_folder, {}),
    "pickled module": (pickled_module, {"allow_pickle": True}),
    "factory": (state_dict, {"arch": "tests.teacher.small_resnet:small_resnet"}),
    "timm": (state_dict, {"arch": "timm:small_resnet"}),
}
PROGRAMS = list(FORMATS)[5:11]


def reference(images: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """Logits, what enters each batch norm in order of execution, and the gradient of a mixture of all of them."""
    network, entering = small_resnet(), []
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, arguments: entering.append(arguments[0].clone()))
    images = images.clone().requires_grad_()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    logits = network((images - mean) / std)
    (gradient,) = torch.autograd.grad(mixture(logits, entering), images)
    return logits.detach(), [tensor.detach() for tensor in entering], gradient


def mixture(logits: Tensor, taps: list[Tensor]) -> Tensor:
    return logits.square().sum() + sum((tap.square().mean() for tap in taps), torch.zeros(()))


def assert_same(teacher: Teacher) -> None:
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    wanted_logits, wanted_taps, wanted_gradient = reference(images)
    asked = images.clone().requires_grad_()
    logits, taps = teacher.logits_and_bn_inputs(asked)
    (gradient,) = torch.autograd.grad(mixture(logits, taps), asked)
    torch.testing.assert_close(teacher.logits(images), wanted_logits, rtol=1e-5, atol=1e-5)
    assert len(taps) == len(wanted_taps) == 8
    for tap, wanted in zip(taps, wanted_taps, strict=True):
        torch.testing.assert_close(tap, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=1e-5)


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of timm no more than what is asked of it: names, models with a number of classes, and which layers end them."""

    def create_model(name: str, pretrained: bool, num_classes: int = 1000, in_chans: int = 3) -> SmallResNet:
        network = SmallResNet()
        network.conv1 = nn.Conv2d(in_chans, 8, 7, 2, 3, bias=False)
        network.fc = nn.Linear(16, num_classes)
        network.pretrained_cfg = {"classifier": "fc", "first_conv": "conv1"}  # type: ignore[assignment]
        return network

    module = types.ModuleType("timm")
    module.create_model = create_model  # type: ignore[attr-defined]
    module.is_model = "small_resnet".__eq__  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", module)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("form", FORMATS)
def test_a_teacher_is_the_same_in_every_format(form: str, tmp_path: Path) -> None:
    write, options = FORMATS[form]
    teacher = open_teacher(write(tmp_path), input_size=SIZE, mean=MEAN, std=STD, **options)
    assert_same(teacher)
    assert teacher.record.spec["family"] == "resnet"  # known by its weights, so that a student may start from them
    assert teacher.record.num_classes == 5


@pytest.mark.parametrize("form", PROGRAMS)
def test_the_program_inside_a_file_is_the_same_network(form: str, tmp_path: Path) -> None:
    write, options = FORMATS[form]
    program = read_checkpoint(write(tmp_path), **options).program
    assert program is not None
    record = open_teacher(state_dict(tmp_path), input_size=SIZE, mean=MEAN, std=STD).record
    assert_same(Teacher(record, Normalised(program.network, MEAN, STD)))
