import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.programs.graph import (
    _ATEN,
    Argument,
    Operation,
    ProgramGraph,
    TensorRef,
    ValueRef,
    build_network,
    find_operator,
)

IMAGES = ValueRef("images")
TENSORS = {"w": torch.rand(4, 3, 1, 1), "mean": torch.rand(4), "variance": torch.rand(4) + 0.5, "short": torch.ones(3)}
NORM = (TensorRef("mean"), TensorRef("variance"), TensorRef("mean"), TensorRef("variance"), True, 0.1, 1e-3, True)


def network(*operations: Operation) -> nn.Module:
    return build_network(ProgramGraph("images", operations, operations[-1].name), TENSORS, "t.pt")


def images() -> Tensor:
    return torch.rand(2, 3, 4, 4)


def convolution(name: str = "a") -> Operation:
    return Operation(name, "aten.conv2d.default", (IMAGES, TensorRef("w")))


def test_every_allowed_operator_exists_changes_nothing_and_draws_nothing_at_random() -> None:
    for name in _ATEN:
        function: Any = find_operator(f"aten.{name}")
        assert function is not None, name
        assert not function._schema.is_mutable, name
        # Attention may draw, and is looked at when a network is built.
        assert torch.Tag.nondeterministic_seeded not in function.tags or name == "scaled_dot_product_attention", name


@pytest.mark.parametrize(
    "name",
    [
        "aten.rand.default",
        "aten.rand_like.default",
        "aten.dropout.default",
        "aten.from_file.default",
        "aten.save.default",
        "aten.relu_.default",
        "aten.add.out",
        "aten.conv2d.no_such",
        "prims.add.default",
        "quantized.conv2d.default",
        "operator.attrgetter",
        "builtins.eval",
        "aten",
        "aten.__class__",
        "",
    ],
)
def test_other_operators_are_not_found(name: str) -> None:
    assert find_operator(name) is None
    with pytest.raises(
        InputError, match=r"^'t\.pt' uses the operator .*, which a teacher may not\.\nWhere the model's code"
    ):
        network(Operation("a", name, ()))


@pytest.mark.parametrize("operator", ["aten.relu.default", "operator.add"])
def test_names_of_arguments_never_become_code(operator: str, capsys: pytest.CaptureFixture[str]) -> None:
    """torch.fx writes them as they are into the function that a network runs."""
    name = "a = 0); print('executed'); dict(b"
    with pytest.raises(InputError, match=f"'t.pt' gives {operator} arguments that it does not take"):
        network(Operation("a", operator, (IMAGES,), {name: 1}))(images())
    assert capsys.readouterr().out == ""


def test_a_network_computes_its_operations_in_order() -> None:
    built = network(
        convolution(),
        Operation("b", "aten.sym_size.int", (ValueRef("a"), 2)),
        Operation("c", "operator.mul", (ValueRef("b"), 4)),
        Operation("d", "aten.reshape.default", (ValueRef("a"), (2, 4, ValueRef("c")))),
        Operation("e", "aten.mean.dim", (ValueRef("d"), (2,)), {"dtype": torch.float32}),
    )
    batch = images()
    torch.testing.assert_close(built(batch), torch.conv2d(batch, TENSORS["w"]).mean((2, 3)))


def test_a_batch_norm_is_a_module_in_evaluation_mode_with_the_files_numbers() -> None:
    built = network(convolution(), Operation("b", "aten.batch_norm.default", (ValueRef("a"), *NORM)))
    (norm,) = (module for module in built.modules() if isinstance(module, nn.BatchNorm2d))
    assert not norm.training
    batch = images()
    entering = torch.conv2d(batch, TENSORS["w"])
    # (x - m) / sqrt(v + eps) w + b
    mean, variance = (TENSORS[name].view(1, 4, 1, 1) for name in ("mean", "variance"))
    torch.testing.assert_close(built(batch), (entering - mean) / (variance + 1e-3).sqrt() * mean + variance)


def test_without_weight_and_bias_a_batch_norm_only_normalises() -> None:
    plain = (None, None, *NORM[2:])
    built = network(convolution(), Operation("b", "aten.batch_norm.default", (ValueRef("a"), *plain)))
    (norm,) = (module for module in built.modules() if isinstance(module, nn.BatchNorm2d))
    assert torch.equal(norm.weight, torch.ones(4)) and torch.equal(norm.bias, torch.zeros(4))


ERRORS: dict[str, tuple[Operation, str]] = {
    "value": (Operation("a", "aten.relu.default", (ValueRef("b"),)), "refers to 'b', which it does not have."),
    "tensor": (Operation("a", "aten.relu.default", (TensorRef("b"),)), "refers to 'b', which it does not have."),
    "statistics": (
        Operation("a", "aten.batch_norm.default", (IMAGES, *NORM[:2], None, None, *NORM[4:])),
        "has a batch norm without running statistics, which normalises by each batch.",
    ),
    "shape": (
        Operation("a", "aten.batch_norm.default", (IMAGES, TensorRef("short"), *NORM[1:])),
        "has a batch norm whose parts do not fit together.",
    ),
    "dimensions": (
        Operation("a", "aten.batch_norm.default", (IMAGES, *4 * [TensorRef("w")], *NORM[4:])),
        "has a batch norm whose parts do not fit together.",
    ),
    "epsilon": (
        Operation("a", "aten.batch_norm.default", (IMAGES, *NORM[:6], "1e-5", True)),
        "has a batch norm whose parts do not fit together.",
    ),
    "computed": (
        Operation("a", "aten.batch_norm.default", (IMAGES, IMAGES, *NORM[1:])),
        "has a batch norm whose parts are computed.",
    ),
    "arguments": (
        Operation("a", "aten.batch_norm.default", (IMAGES,)),
        "uses the operator aten.batch_norm.default, which a teacher may not.",
    ),
    "attention": (
        Operation("a", "aten.scaled_dot_product_attention.default", (IMAGES, IMAGES, IMAGES, None, 0.5)),
        "drops values at random, as in training; it must be saved in evaluation mode.",
    ),
    "attention by name": (
        Operation("a", "aten.scaled_dot_product_attention.default", (IMAGES, IMAGES, IMAGES), {"dropout_p": 0.5}),
        "drops values at random, as in training; it must be saved in evaluation mode.",
    ),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_a_program_that_makes_no_sense_is_refused(kind: str) -> None:
    operation, sentence = ERRORS[kind]
    with pytest.raises(InputError) as refused:
        network(operation)
    assert refused.value.message == f"'t.pt' {sentence}"


def test_attention_that_drops_nothing_is_allowed() -> None:
    attention = "aten.scaled_dot_product_attention.default"
    assert network(Operation("a", attention, (IMAGES, IMAGES, IMAGES, None, 0.0)))(images()).shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    ("operator", "left", "right", "error"),
    [
        ("operator.mul", 2**40, 2**40, OverflowError),
        ("operator.pow", 10, 10_000, OverflowError),
        ("operator.mul", (1, 2), 2**40, TypeError),
        ("operator.mod", "%1000000000d", 1, TypeError),
        ("operator.add", IMAGES, 1, TypeError),
    ],
)
def test_arithmetic_cannot_be_made_to_take_forever(
    operator: str, left: Argument, right: Argument, error: type[Exception]
) -> None:
    with pytest.raises(error):
        network(Operation("a", operator, (left, right)))(images())


def test_names_from_the_file_never_become_code() -> None:
    evil = "x):\n    import os\n    os.mkdir('canary')\n    return (y"
    built = build_network(
        ProgramGraph(evil, (Operation("a", "aten.pad.default", (ValueRef(evil), (1, 1), evil)),), "a"), TENSORS, "t.pt"
    )
    assert "import os" not in str(built.code).replace(repr(evil), "")
    with pytest.raises(NotImplementedError):  # no such mode of padding
        built(images())


@pytest.mark.parametrize("change", [copy.deepcopy, lambda built: built.to(memory_format=torch.channels_last)])
def test_networks_can_be_copied_and_moved(change: Callable[[nn.Module], nn.Module]) -> None:
    built = network(convolution(), Operation("b", "aten.batch_norm.default", (ValueRef("a"), *NORM)))
    batch = images()
    wanted = built(batch)
    torch.testing.assert_close(change(built)(batch), wanted)
