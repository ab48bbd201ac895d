from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from compress.pipeline.errors import InputError, UsageError
from compress.pipeline.networks import build, spec_from_json
from compress.pipeline.teacher import Teacher, open_teacher
from tests.teacher.checkpoints import Weights, saved, tiny_spec, tiny_weights, trained, weights_of


def sentences(teacher: Teacher, topic: str) -> list[str]:
    return [str(finding) for finding in teacher.record.findings if finding.topic == topic]


def test_a_training_checkpoint_becomes_a_teacher_that_answers_as_the_network_did(tmp_path: Path) -> None:
    network = trained(tiny_spec())
    weights = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9).state_dict()
    content = {"epoch": 90, "state_dict": weights, "optimizer": optimizer, "best_prec1": 93.6}
    teacher = open_teacher(saved(content, tmp_path / "teacher.pt"), input_size=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(teacher.logits(images), network((images - 0.5) / 0.25))
    assert teacher.record.format == "PyTorch checkpoint, weights under 'state_dict'"
    assert teacher.record.architecture == "ResNet-8 (CIFAR form, basic blocks, widths 4-8, option B shortcuts)"
    assert teacher.record.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert teacher.record.num_classes == 3
    assert teacher.record.batch_norm_layers == len(teacher.bn_statistics) == 8
    assert teacher.record.name == "resnet8"
    assert teacher.record.output == "logits"
    assert teacher.record.reasons


def test_the_record_is_enough_to_build_the_network_again(tmp_path: Path) -> None:
    teacher = open_teacher(saved(tiny_weights(), tmp_path / "teacher.pt"))
    assert spec_from_json(teacher.record.spec) == tiny_spec()
    assert build(teacher.record.spec).state_dict().keys() == teacher.network.network.state_dict().keys()


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tiny_weights().items()}
    teacher = open_teacher(saved(halves, tmp_path / "teacher.pt"))
    assert {parameter.dtype for parameter in teacher.network.parameters()} == {torch.float32}
    assert torch.equal(teacher.network.network.state_dict()["fc.weight"], halves["fc.weight"].float())


def test_safetensors_with_metadata_need_no_options(tmp_path: Path) -> None:
    save_file(tiny_weights(), tmp_path / "t", {"input_size": "8", "mean": "[0.1, 0.2, 0.3]", "std": "[0.4, 0.5, 0.6]"})
    images = open_teacher(tmp_path / "t").record.input
    assert (images.height, images.mean, images.std) == (8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_a_second_set_of_weights_is_a_warning(tmp_path: Path) -> None:
    teacher = open_teacher(saved({"model": tiny_weights(), "ema": tiny_weights()}, tmp_path / "teacher.pt"))
    assert "The checkpoint has weights under 'ema', too; they were not used." in sentences(teacher, "checkpoint")


def test_a_teacher_without_batch_norm_is_a_warning(tmp_path: Path) -> None:
    teacher = open_teacher(saved(tiny_weights(batch_norm=False), tmp_path / "teacher.pt"))
    assert teacher.bn_statistics == []
    assert teacher.record.batch_norm_layers == 0
    assert any("image prior" in sentence for sentence in sentences(teacher, "batch norm"))
    logits, bn_inputs = teacher.logits_and_bn_inputs(torch.rand(1, 3, 32, 32))
    assert logits.shape == (1, 3) and bn_inputs == []


def test_padding_shortcuts_are_an_assumption_that_the_record_tells(tmp_path: Path) -> None:
    teacher = open_teacher(saved(tiny_weights(shortcut="pad"), tmp_path / "teacher.pt"))
    assert any("pad with zero channels" in sentence for sentence in sentences(teacher, "assumption"))


@pytest.mark.parametrize(
    ("given", "assumed"),
    [
        ({}, "32x32 pixels and mean (0.485, 0.456, 0.406) and std (0.229, 0.224, 0.225) are assumed"),
        ({"input_size": 8}, "; mean (0.485, 0.456, 0.406) and std (0.229, 0.224, 0.225) are assumed"),
        ({"input_size": 8, "mean": (0.5,) * 3}, "; mean (0.5, 0.5, 0.5) and std (0.229, 0.224, 0.225) are assumed"),
        ({"mean": (0.5,) * 3, "std": (0.5,) * 3}, "; 32x32 pixels are assumed"),
        ({"input_size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3}, ""),
    ],
)
def test_what_nobody_said_about_the_input_is_a_warning(given: dict[str, Any], assumed: str, tmp_path: Path) -> None:
    teacher = open_teacher(saved(tiny_weights(), tmp_path / "teacher.pt"), **given)
    assert bool(assumed) == bool(sentences(teacher, "input"))
    assert all(assumed in sentence for sentence in sentences(teacher, "input"))


def test_the_gravest_finding_comes_first(tmp_path: Path) -> None:
    severities = [
        finding.severity for finding in open_teacher(saved(tiny_weights(), tmp_path / "t.pt")).record.findings
    ]
    assert severities == sorted(severities, key=["problem", "warning", "note"].index)


class Probable(nn.Module):
    """A network whose author left the softmax in."""

    def __init__(self) -> None:
        super().__init__()
        self.network = trained(tiny_spec())

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).tanh().softmax(1)  # type: ignore[no-any-return]


def test_a_network_that_puts_out_probabilities_becomes_a_teacher_with_logits(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = Probable().eval()
    torch.save(network, tmp_path / "module.pt")
    teacher = open_teacher(tmp_path / "module.pt", input_size=8, mean=(0.5,) * 3, std=(0.5,) * 3, allow_pickle=True)
    assert teacher.record.output == "probabilities"
    images = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(teacher.logits(images).softmax(1), network((images - 0.5) / 0.5))
    assert any("probabilities" in sentence for sentence in sentences(teacher, "outputs"))


def test_a_size_that_the_strides_cannot_take_is_a_usage_error_with_the_numbers(tmp_path: Path) -> None:
    weights = tiny_weights(stem="imagenet", blocks=(1, 1, 1), widths=(4, 4, 4))
    with pytest.raises(UsageError, match=r"cannot take images of 7x7 pixels \(from the command line\)"):
        open_teacher(saved(weights, tmp_path / "teacher.pt"), input_size=7)


@pytest.mark.parametrize("size", [-1, 0, 1025])
def test_a_size_out_of_reach_is_a_usage_error(size: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"Images of {size}x{size} pixels \(from the command line\) are out of reach"):
        open_teacher(saved(tiny_weights(), tmp_path / "teacher.pt"), input_size=size)


def test_a_size_out_of_reach_in_the_file_is_an_error_before_any_image_is_made(tmp_path: Path) -> None:
    path = saved({"state_dict": tiny_weights(), "input_size": 100_000}, tmp_path / "teacher.pt")
    with pytest.raises(InputError, match=r"Images of 100000x100000 pixels \(from the checkpoint's metadata\)"):
        open_teacher(path)


def test_one_output_is_no_classifier(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'teacher\.pt' has 1 output; a classifier has one for each of at least two"):
        open_teacher(saved(tiny_weights(num_classes=1), tmp_path / "teacher.pt"))


def test_weights_that_overflow_are_refused(tmp_path: Path) -> None:
    weights = tiny_weights()
    weights["fc.weight"] = torch.full_like(weights["fc.weight"], 3e38)
    with pytest.raises(InputError, match="answers a blank image with NaN or infinity"):
        open_teacher(saved(weights, tmp_path / "teacher.pt"))


def by_hand(weights: Weights, x: Tensor) -> Tensor:
    """A ResNet of two stages of one block with option-A shortcuts, written after the paper, layer by layer."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        return F.batch_norm(x, mean, variance, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def block(x: Tensor, name: str, stride: int) -> Tensor:
        out = F.relu(norm(F.conv2d(x, weights[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1"))
        out = norm(F.conv2d(out, weights[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
        carried = torch.zeros_like(out)
        before = (out.shape[1] - x.shape[1]) // 2
        for channel in range(x.shape[1]):
            carried[:, before + channel] = x[:, channel, ::stride, ::stride]
        return F.relu(out + carried)

    x = F.relu(norm(F.conv2d(x, weights["conv1.weight"], padding=1), "bn1"))
    x = block(block(x, "layer1.0", 1), "layer2.0", 2)
    return x.mean((2, 3)) @ weights["linear.weight"].T + weights["linear.bias"]


def test_a_network_with_padding_shortcuts_computes_what_the_paper_says(tmp_path: Path) -> None:
    weights = weights_of(trained(tiny_spec(shortcut="pad", blocks=(1, 1))))
    weights = {name.replace("fc.", "linear."): tensor for name, tensor in weights.items()}
    teacher = open_teacher(saved(weights, tmp_path / "teacher.pt"), mean=(0.5,) * 3, std=(0.25,) * 3)
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(teacher.logits(images), by_hand(weights, (images - 0.5) / 0.25))
