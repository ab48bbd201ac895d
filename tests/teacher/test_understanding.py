from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compress.pipeline.errors import InputError
from compress.pipeline.networks import NetworkSpec, build
from compress.pipeline.networks.resnet import PadShortcut, ResNet
from compress.pipeline.networks.vit import ViTSpec
from compress.pipeline.records import InputSpec
from compress.pipeline.teacher.checkpoint import Checkpoint, Program
from compress.pipeline.teacher.inputs import resolve_input
from compress.pipeline.teacher.understanding import Understood, least_surprised, same_answers, understand
from tests.teacher.checkpoints import tiny_spec, trained
from tests.tiny import blobs, record_of


def images_for(spec: NetworkSpec) -> InputSpec:
    return resolve_input(spec, {}, input_size=16, mean=None, std=None)


def checkpoint_of(network: nn.Module, program: nn.Module | None = None) -> Checkpoint:
    tensors = {name: tensor for name, tensor in network.state_dict().items() if "num_batches" not in name}
    return Checkpoint(
        file_name="t.pt",
        sha256="0" * 64,
        format="",
        tensors=tensors,
        program=None if program is None else Program(network=program, title="a graph"),
    )


def understood(network: nn.Module, program: nn.Module | None = None) -> Understood:
    return understand(checkpoint_of(network, program), images_for, (16, 16))


class After(nn.Module):
    """A network and something done to its answer."""

    def __init__(self, network: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.function = network, function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(self.network(images))


def padded_after(network: ResNet) -> ResNet:
    """The network with all of its zero channels behind the others, its batch norms trained like that."""
    for module in network.modules():
        if isinstance(module, PadShortcut):
            module.before, module.after = 0, module.before + module.after
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        network.train()(blobs(64, record_of(network.spec, 16)) * 4 - 2)
    return network.eval()


def test_weights_alone_become_the_one_network_that_they_fit() -> None:
    network = trained(tiny_spec())
    found = understood(network)
    assert found.spec == tiny_spec()
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(found.network(images), network(images))


def test_the_first_candidate_counts_unless_another_is_clearly_less_surprised() -> None:
    assert least_surprised([1.0, 0.95]) == 0  # 0.95 is no less than 0.9 times 1.0
    assert least_surprised([1.0, 0.95, 0.5]) == 2
    assert least_surprised([0.5, 1.0]) == 0


def test_of_two_forms_that_leave_no_trace_the_batch_norms_tell_which_was_trained() -> None:
    torch.manual_seed(0)
    network = padded_after(trained(tiny_spec(shortcut="pad", widths=(4, 16), blocks=(2, 3))))
    found = understood(network)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(found.network(images), network(images))
    assert (
        "2 variants fit alike; in this one the batch norms meet inputs nearest to those of training"
        in found.reasons[-1]
    )


def test_a_program_that_answers_as_a_known_network_becomes_that_network() -> None:
    network = trained(tiny_spec())
    found = understood(network, After(network, nn.Identity()))
    assert found.spec == tiny_spec()
    assert found.reasons[-1] == "Its own network, a graph, answers the same on 16 images of noise."


@pytest.mark.parametrize("ending", [nn.Softmax(1), nn.LogSoftmax(1)])
def test_a_softmax_at_the_end_of_a_program_does_not_hide_the_network_before_it(ending: nn.Module) -> None:
    network = trained(tiny_spec())
    found = understood(network, After(network, ending))
    assert found.spec == tiny_spec()
    assert isinstance(found.network, ResNet)
    assert "but for the last step that makes" in found.reasons[-1]


def test_a_program_that_answers_otherwise_than_its_weights_suggest_stays_itself() -> None:
    network = trained(tiny_spec())
    program = After(network, lambda logits: logits + logits[:, :1].tanh())
    found = understood(network, program)
    assert found.network is program
    assert found.spec.family == "program"
    assert "a student cannot start from its blocks" in found.reasons[-1]


def test_a_program_without_names_that_say_anything_stays_itself() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 14 * 14, 3))
    found = understood(network, network)
    assert found.network is network
    assert (found.spec.channels, found.spec.num_classes) == (1, 3)


def test_weights_of_no_known_network_and_no_program_are_refused() -> None:
    with pytest.raises(InputError, match=r"The architecture of 't\.pt' is not recognised"):
        understood(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Linear(2, 3)))


def test_the_same_network_is_recognised_up_to_rounding_and_no_further() -> None:
    network = trained(tiny_spec())
    shape = (3, 16, 16)
    assert same_answers(network, network, shape) == "logits"
    assert same_answers(network, After(network, nn.Softmax(1)), shape) == "probabilities"
    assert same_answers(network, After(network, nn.LogSoftmax(1)), shape) == "log-probabilities"
    assert same_answers(network, After(network, lambda x: x * (1 + 1e-6)), shape) == "logits"
    assert same_answers(network, After(network, lambda x: x * 1.01), shape) is None
    assert same_answers(network, After(network, lambda x: x[:, :2]), shape) is None


def test_weights_of_a_network_for_other_images_than_the_program_takes_are_no_match() -> None:
    grey = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 14 * 14, 3))
    found = understand(checkpoint_of(trained(tiny_spec()), grey), images_for, (16, 16))
    assert found.network is grey


def test_a_known_network_of_one_size_is_not_asked_about_images_of_another() -> None:
    spec = ViTSpec(num_classes=3, patch=4, grid=4, width=8, depth=1, mlp_width=16, heads=2)
    network = build(spec).eval()
    program = nn.Sequential(nn.AvgPool2d(2), network)
    found = understand(checkpoint_of(network, program), images_for, (32, 32))
    assert found.network is program
