import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.networks.resnet import ResNet
from compress.pipeline.records import InputSpec, TeacherRecord
from compress.pipeline.teacher import Teacher
from compress.pipeline.teacher.programs.graph import AnyBatchNorm
from tests.teacher.checkpoints import tiny_spec, trained


def record(channels: int = 3, size: int = 8) -> TeacherRecord:
    images = InputSpec(channels=channels, height=size, width=size, mean=(0.5,) * channels, std=(0.25,) * channels)
    return TeacherRecord(
        file_name="t.pt",
        sha256="0",
        format="",
        name="",
        architecture="",
        spec={},
        input=images,
        num_classes=3,
        parameters=0,
        batch_norm_layers=0,
    )


def teacher_of(network: nn.Module, channels: int = 3) -> Teacher:
    return Teacher(record(channels), Normalised(network, (0.5,) * channels, (0.25,) * channels))


@pytest.fixture
def network() -> ResNet:
    return trained(tiny_spec())


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 8, 8)


class LaterFirst(nn.Module):
    """Defines its batch norms in the opposite order of use."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.BatchNorm2d(1)
        self.first = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.second(2 * self.first(x)).flatten(1)
        return logits


def test_logits_are_those_of_the_normalised_images(network: ResNet, images: Tensor) -> None:
    assert torch.equal(teacher_of(network).logits(images), network((images - 0.5) / 0.25))


def test_the_teacher_is_frozen_but_lets_gradients_reach_the_images(network: ResNet, images: Tensor) -> None:
    teacher = teacher_of(network.train())
    assert not any(module.training for module in teacher.network.modules())
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    images.requires_grad_()
    logits, bn_inputs = teacher.logits_and_bn_inputs(images)
    (from_logits,) = torch.autograd.grad(logits.sum(), images, retain_graph=True)
    (from_inputs,) = torch.autograd.grad(sum(entering.var() for entering in bn_inputs), images)  # type: ignore[arg-type]
    assert from_logits.abs().sum() > 0
    assert from_inputs.abs().sum() > 0


def test_the_first_batch_norm_input_is_what_the_stem_puts_out(network: ResNet, images: Tensor) -> None:
    logits, bn_inputs = teacher_of(network).logits_and_bn_inputs(images)
    assert torch.equal(bn_inputs[0], network.conv1((images - 0.5) / 0.25))
    assert torch.equal(logits, network((images - 0.5) / 0.25))


def test_batch_norm_inputs_lead_to_the_outputs_under_the_statistics_of_the_same_place(
    network: ResNet, images: Tensor
) -> None:
    # The last block by hand: relu(bn2(input of its bn2) + its own input), where bn(x) = (x - m) / sqrt(v + 1e-5) w + b.
    teacher = teacher_of(network)
    _, bn_inputs = teacher.logits_and_bn_inputs(images)
    _, stage_outputs = teacher.logits_and_stage_outputs(images)
    block = network.stages[1][1]
    before = network.stages[1][0](stage_outputs[0])
    statistics = teacher.bn_statistics[-1]
    scale = block.get_parameter("bn2.weight") / torch.sqrt(statistics.variance + 1e-5)
    centred = bn_inputs[-1] - statistics.mean.view(-1, 1, 1)
    outcome = centred * scale.view(-1, 1, 1) + block.get_parameter("bn2.bias").view(-1, 1, 1)
    torch.testing.assert_close(F.relu(outcome + before), stage_outputs[1])


def test_statistics_and_inputs_stand_in_order_of_execution() -> None:
    network = LaterFirst()
    assert network.first.running_mean is not None and network.second.running_mean is not None
    network.first.running_mean.fill_(1.0)
    network.second.running_mean.fill_(2.0)
    teacher = teacher_of(network, channels=1)
    assert [float(layer.mean) for layer in teacher.bn_statistics] == [1.0, 2.0]
    _, bn_inputs = teacher.logits_and_bn_inputs(torch.full((1, 1, 8, 8), 0.75))
    # (0.75 - 0.5) / 0.25 = 1, and 2 (1 - 1) = 0
    assert [float(entering.mean()) for entering in bn_inputs] == [1.0, 0.0]


def test_every_batch_norm_has_statistics_and_inputs_of_the_same_channels(network: ResNet, images: Tensor) -> None:
    teacher = teacher_of(network)
    _, bn_inputs = teacher.logits_and_bn_inputs(images)
    channels = [entering.shape[1] for entering in bn_inputs]
    assert channels == [4, 4, 4, 8, 8, 8, 8, 8]  # stem, one block, a block with projection, one block
    assert [len(layer.mean) for layer in teacher.bn_statistics] == channels
    assert [len(layer.variance) for layer in teacher.bn_statistics] == channels


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in network.modules())


def test_no_hook_is_active_outside_of_the_call_that_needs_it(network: ResNet, images: Tensor) -> None:
    teacher = teacher_of(network)
    active: list[int] = []

    class Watching(nn.AdaptiveAvgPool2d):
        def forward(self, input: Tensor) -> Tensor:
            active.append(hooks(network))
            return super().forward(input)

    network.avgpool = Watching(1)
    teacher.logits(images)
    teacher.logits_and_bn_inputs(images)
    teacher.logits(images)
    assert active == [0, 8, 0]


def test_hooks_are_taken_off_after_an_error(network: ResNet) -> None:
    teacher = teacher_of(network)
    with pytest.raises(RuntimeError):
        teacher.logits_and_bn_inputs(torch.rand(1, 5, 8, 8))
    assert hooks(network) == 0


def test_stage_outputs_have_the_sizes_of_the_stages(network: ResNet, images: Tensor) -> None:
    logits, outputs = teacher_of(network).logits_and_stage_outputs(images)
    assert [tuple(output.shape) for output in outputs] == [(4, 4, 8, 8), (4, 8, 4, 4)]
    assert torch.equal(logits, teacher_of(network).logits(images))


def test_a_network_without_stages_says_so() -> None:
    with pytest.raises(TypeError, match="LaterFirst has no stages"):
        teacher_of(LaterFirst(), channels=1).logits_and_stage_outputs(torch.rand(1, 1, 8, 8))


def test_batch_norms_that_say_nothing_about_images_are_passed_over() -> None:
    silent, of_images, of_vectors = nn.BatchNorm2d(1, track_running_stats=False), nn.BatchNorm2d(1), AnyBatchNorm(1)
    teacher = teacher_of(nn.Sequential(silent, of_images, nn.AdaptiveAvgPool2d(1), nn.Flatten(), of_vectors), 1)
    assert len(teacher.bn_statistics) == 1
    images = torch.rand(2, 1, 8, 8)
    _, (entering,) = teacher.logits_and_bn_inputs(images)
    torch.testing.assert_close(entering, nn.functional.batch_norm((images - 0.5) / 0.25, None, None, training=True))


def test_a_moved_teacher_is_the_same_with_its_statistics(network: ResNet, images: Tensor) -> None:
    teacher = teacher_of(network)
    before = teacher.logits(images)
    moved = teacher.to(torch.device("cpu"), torch.channels_last)
    assert moved is teacher
    assert network.stages[0][0].get_parameter("conv1.weight").is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(teacher.logits(images), before)
    assert teacher.to(torch.device("meta")).bn_statistics[0].mean.is_meta
