from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.checkpoint import Program
from compress.pipeline.teacher.programs.modules import Classifier, ProgramSpec, describe, load_by_name


class Answering(nn.Module):
    """Answers with whatever it was given."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> object:
        return self.answer


class Fixed(nn.Module):
    """Takes images of one size only."""

    def __init__(self, channels: int, size: int, classes: int = 4) -> None:
        super().__init__()
        self.shape = (channels, size, size)
        self.last = nn.Linear(channels * size * size, classes)

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(f"expected {self.shape}\nand a second line")
        return self.last(images.flatten(1))  # type: ignore[no-any-return]


def convolutional(stride: int, channels: int = 3) -> nn.Sequential:
    """Takes any size that its stride can; one batch norm at the end."""
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, stride, 1),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 6),
    ).eval()


def described(
    network: nn.Module, *, asked: tuple[int, int] | None = None, shape: tuple[int | None, ...] | None = None
) -> ProgramSpec:
    program = Program(network=network, title="a graph", input_shape=shape)
    return describe(program, asked, "t.onnx")


def test_an_object_with_logits_is_an_answer() -> None:
    logits = torch.rand(1, 3)
    assert Classifier(Answering(SimpleNamespace(logits=logits)))(torch.rand(1, 3, 8, 8)) is logits


def test_another_answer_is_refused_by_its_type() -> None:
    with pytest.raises(InputError, match=r"In 't\.onnx', the network answers with dict and not with a tensor\."):
        described(Classifier(Answering({})), asked=(8, 8))


def test_a_module_of_any_precision_is_frozen_in_float32() -> None:
    classifier = Classifier(nn.Conv2d(3, 2, 3).half().train())
    assert not classifier.module.training
    assert {(parameter.dtype, parameter.requires_grad) for parameter in classifier.parameters()} == {
        (torch.float32, False)
    }


def test_a_program_says_what_it_takes_and_tells_apart() -> None:
    spec = described(Fixed(1, 28), shape=(None, 1, 28, 28))
    assert (spec.channels, spec.size, spec.num_classes, spec.title) == (1, 28, 4, "a graph")


@pytest.mark.parametrize(("channels", "size"), [(3, 224), (3, 32), (1, 28), (3, 64)])
def test_a_network_of_one_size_is_found_by_trying_the_usual_sizes(channels: int, size: int) -> None:
    spec = described(Fixed(channels, size))
    assert (spec.channels, spec.size) == (channels, size)


def test_the_size_that_was_asked_for_is_the_only_one_tried() -> None:
    with pytest.raises(
        InputError, match=r"does not take a blank image of 9x9 pixels: expected \(1, 8, 8\)\."
    ) as caught:
        described(Fixed(1, 8), asked=(9, 9))
    assert caught.value.hint == "Give another --input-size, or none."


def test_no_size_at_all_is_an_error() -> None:
    with pytest.raises(InputError, match=r"does not take a blank image of any usual size: expected \(3, 77, 77\)"):
        described(Fixed(3, 77))


@pytest.mark.parametrize(("stride", "size"), [(32, 224), (4, 32), (1, 32)])
def test_networks_that_hardly_subsample_were_made_for_small_images(stride: int, size: int) -> None:
    assert described(convolutional(stride)).size == size


def test_channels_are_those_of_the_first_convolution() -> None:
    assert described(convolutional(2, channels=2), asked=(16, 16)).channels == 2


@pytest.mark.parametrize("answer", [torch.rand(1, 3, 8, 8), torch.ones(2, 3, dtype=torch.int64), torch.rand(3)])
def test_what_does_not_answer_with_one_number_a_class_is_no_classifier(answer: Tensor) -> None:
    with pytest.raises(InputError, match=r"a classifier answers \[N, K\]"):
        described(Classifier(Answering(answer)))


def test_a_large_image_that_is_taken_for_several_small_ones_is_not_taken() -> None:
    class FlattensToFixedShape(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.reshape(-1, 3 * 32 * 32)  # 224 x 224 are 49 times 32 x 32

    spec = described(FlattensToFixedShape(), shape=(None, 3, None, None))
    assert (spec.size, spec.num_classes) == (32, 3072)


def test_a_network_of_one_image_at_a_time_is_refused() -> None:
    class One(Fixed):
        def forward(self, images: Tensor) -> Tensor:
            return self.last(images.view(1, self.last.in_features))  # type: ignore[no-any-return]

    with pytest.raises(InputError, match=r"does not take a blank image of 8x8 pixels: shape '\[1, 64\]' is invalid"):
        described(One(1, 8), shape=(None, 1, 8, 8))


def test_an_input_of_three_dimensions_is_no_image() -> None:
    with pytest.raises(InputError, match="takes an input of 3 dimensions; an image has four"):
        described(Fixed(1, 8), shape=(None, 77, 512))


def test_weights_are_loaded_by_name_whatever_prefix_the_network_puts_before_them() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = convolutional(1)

    wrapped = Wrapped()
    tensors = {name: torch.rand_like(value) for name, value in convolutional(1).state_dict().items() if value.dim()}
    load_by_name(wrapped, tensors, "t.pt")
    assert torch.equal(wrapped.backbone.state_dict()["4.weight"], tensors["4.weight"])


def test_weights_that_do_not_fit_are_named() -> None:
    tensors = dict(convolutional(1).state_dict())
    tensors.pop("1.num_batches_tracked")
    tensors["9.weight"] = tensors.pop("4.bias")
    tensors["0.bias"] = torch.ones(5)
    with pytest.raises(InputError) as caught:
        load_by_name(convolutional(1), tensors, "t.pt")
    assert caught.value.message == (
        "The weights of 't.pt' do not fit the network: '9.weight' has no place in it; '4.bias' is missing; "
        "'0.bias' is [5] and not [4]."
    )
