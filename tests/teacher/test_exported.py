"""torch.export programs as teachers: the same network in whatever form it was exported."""

import json
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import export

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.programs.exported import TRAINING_WARNING, ExportedProgram, read_exported
from tests.teacher.exported_programs import (
    CONSTANTS,
    FORMS,
    MODEL,
    WEIGHTS,
    Residual,
    decomposed,
    edited,
    exported,
    graph_edited,
    images,
    members,
    packed,
    program,
    residual,
    saved,
)
from tests.teacher.hostile.making import saved as pickled
from tests.teacher.teachers import images_of, teacher_of


def read(content: bytes) -> ExportedProgram:
    return read_exported(bytearray(content), "teacher.pt2")


def refusal(content: bytes) -> InputError:
    with pytest.raises(InputError) as caught:
        read(content)
    assert caught.value.exit_code == 3
    assert caught.value.message.startswith("'teacher.pt2' ") and caught.value.message.isprintable()
    return caught.value


def reference(form: str) -> Residual:
    """The network that was exported, in evaluation mode and float32."""
    return residual().half().float() if form == "half precision" else residual()


@cache
def found(form: str) -> ExportedProgram:
    """What is read of the file of that form."""
    return read(exported(form))


def logits_and_gradient(network: nn.Module, asked: Tensor) -> tuple[Tensor, Tensor]:
    asked = asked.clone().requires_grad_()
    logits = network(asked)
    (gradient,) = torch.autograd.grad(logits.square().sum(), asked)
    return logits.detach(), gradient


@pytest.mark.parametrize("form", FORMS)
def test_a_program_answers_as_its_network_however_many_images_there_are(form: str) -> None:
    network = found(form).program.network
    for count in (1, 2, 5):
        logits, gradient = logits_and_gradient(network, images(count))
        wanted_logits, wanted_gradient = logits_and_gradient(reference(form), images(count))
        torch.testing.assert_close(logits, wanted_logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_teacher_finds_what_enters_the_batch_norms_of_a_program(form: str) -> None:
    asked = torch.rand(3, 3, 8, 8)
    teacher = teacher_of(found(form).program.network, images_of(size=8))
    wanted = teacher_of(reference(form), images_of(size=8))
    logits, taps = teacher.logits_and_bn_inputs(asked)
    wanted_logits, wanted_taps = wanted.logits_and_bn_inputs(asked)
    torch.testing.assert_close(logits, wanted_logits, rtol=1e-5, atol=1e-5)
    assert len(taps) == 3
    # `Residual` changes what leaves a batch norm in place, not what enters one, so its own taps are right.
    for tap, wanted_tap in zip(taps, wanted_taps, strict=True):
        torch.testing.assert_close(tap, wanted_tap, rtol=1e-4, atol=1e-4)
    for read_of, recorded in zip(teacher.bn_statistics, wanted.bn_statistics, strict=True):
        assert torch.equal(read_of.mean, recorded.mean) and torch.equal(read_of.variance, recorded.variance)


@pytest.mark.parametrize("form", FORMS)
def test_parameters_and_buffers_come_under_their_own_names(form: str) -> None:
    state = reference(form).state_dict()
    wanted = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert found(form).tensors.keys() == wanted.keys()
    assert all(torch.equal(found(form).tensors[name], tensor) for name, tensor in wanted.items())
    assert found(form).batches_tracked == {"stem_norm": 7, "norm": 7, "tied_norm": 7}


def test_a_program_tells_the_shape_of_its_images_and_how_many_operations_it_has() -> None:
    assert found("two images").program.input_shape == (None, 3, 8, 8)
    assert found("any size").program.input_shape == (None, 3, None, None)
    # 3 convolutions and batch norms; relu, hardtanh, add, relu, max pool, average pool, view, linear; multiplication,
    # two to lift the constant, addition, indexing. Dropout is none.
    assert found("two images").program.title == "torch.export program of 19 operations"


def test_a_program_for_images_of_any_size_takes_them() -> None:
    asked = images(2, size=12)
    network = found("any size").program.network
    torch.testing.assert_close(network(asked), residual()(asked), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_only_a_program_exported_in_training_mode_brings_a_warning(form: str) -> None:
    assert found(form).warnings == ((TRAINING_WARNING,) if "training" in form else ())


def test_nothing_of_the_network_is_in_the_memory_of_the_file() -> None:
    data = bytearray(exported())
    kept = read_exported(data, "teacher.pt2")
    before = kept.program.network(images(2))
    data[:] = bytes(len(data))
    assert torch.equal(kept.program.network(images(2)), before)
    assert torch.equal(kept.tensors["head.weight"], residual().head.weight)


def without(document: Any, key: str) -> Any:
    """A document in which no object has that key."""
    if isinstance(document, dict):
        return {name: without(value, key) for name, value in document.items() if name != key}
    return [without(item, key) for item in document] if isinstance(document, list) else document


def state_of_program() -> dict[str, bytes]:
    """A state_dict and constants as torch.export saved them before it stored raw bytes."""
    saved_program = program("any batch")
    return {"weights": pickled(dict(saved_program.state_dict)), "constants": pickled(dict(saved_program.constants))}


def test_weights_in_one_pickle_of_tensors_as_of_version_2_8_are_read() -> None:
    content = {name: value for name, value in members().items() if not name.startswith(("data/w", "data/c"))}
    state = state_of_program()
    content |= {"data/weights/model.pt": state["weights"], "data/constants/model.pt": state["constants"]}
    torch.testing.assert_close(read(packed(content)).program.network(images(3)), residual()(images(3)))


def flat(document: Any, state: dict[str, bytes]) -> bytes:
    """The layout before version 2.8, whose calls had neither names nor kinds of arguments."""
    content = {
        "version": b"2.7.0",
        "serialized_exported_program.json": json.dumps(without(document, "kind")).encode(),
        "serialized_state_dict.pt": state["weights"],
        "serialized_constants.pt": state["constants"],
        "serialized_example_inputs.pt": b"not even opened",
    }
    return packed(content, folder="")


def test_the_layout_before_version_2_8_is_read() -> None:
    document = json.loads(members()[MODEL])
    for node in document["graph_module"]["graph"]["nodes"]:
        del node["name"]
    network = read(flat(document, state_of_program())).program.network
    torch.testing.assert_close(network(images(3)), residual()(images(3)))


def test_a_program_from_a_big_endian_machine_is_read() -> None:
    content = members()
    for table, folder in ((WEIGHTS, "data/weights/"), (CONSTANTS, "data/constants/")):
        for payload in json.loads(content[table])["config"].values():
            width = 8 if payload["tensor_meta"]["dtype"] == 5 else 4  # int64, else float32
            numbers = torch.frombuffer(bytearray(members()[folder + payload["path_name"]]), dtype=torch.uint8)
            content[folder + payload["path_name"]] = numbers.view(-1, width).flip(1).numpy().tobytes()
    swapped = packed(content | {"byteorder": b"big"})
    torch.testing.assert_close(read(swapped).program.network(images(2)), residual()(images(2)))


class Attention(nn.Module):
    """A transformer of one layer, in which the images stand second and beside the heads for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        x = self.patches(x).reshape(count, 8, -1).transpose(1, 2)
        x = self.layer(torch.cat([self.token.expand(count, -1, -1), x], 1))
        return self.head(x[:, 0])  # type: ignore[no-any-return]


class Mixed(nn.Module):
    """Shuffles channels, appends zeros of the images' number, and repeats a parameter for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.offset = nn.Parameter(torch.randn(1, 8))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        count, channels, height, width = x.shape
        x = x.view(count, 2, channels // 2, height, width).transpose(1, 2).reshape(count, -1, height, width)
        x = torch.cat([x, torch.zeros(count, 8, height, width)], 1).mean((2, 3))
        return self.head(x + torch.cat([self.offset.repeat(count, 1), self.offset.expand(count, 8)], 1))  # type: ignore[no-any-return]


class Windows(nn.Module):
    """Computes on windows of the images, which count as images for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        windows = x.reshape(count, 3, 4, 2, 4, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4 * 3)
        heads: Tensor = self.linear(windows).view(count * 16, 4, 3).transpose(1, 2).relu()
        return heads.reshape(count, 16, 3, 4).mean((1, 3))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@pytest.mark.parametrize("kind", [Attention, Mixed, Windows])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_number_of_images_written_into_a_program_makes_no_difference(kind: type[nn.Module], count: int) -> None:
    torch.manual_seed(0)
    network = kind().eval()
    rebuilt = read(saved(export(network, (images(count),)))).program.network
    for other in (1, 3, 4):
        torch.testing.assert_close(rebuilt(images(other)), network(images(other)), rtol=1e-5, atol=1e-5)


class Made(nn.Module):
    """Makes tensors on the device that it was exported on, and converts their types."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x) + torch.arange(8) + torch.arange(1, 9, 2).repeat(2) + torch.full((8, 1), 0.5)
        x = torch.where(torch.ones(8, dtype=torch.bool).logical_and(x > 0), x, torch.tensor(-1.0)).double()
        rows = x.to(torch.float32).flatten(1, 2)
        return F.scaled_dot_product_attention(rows, rows, rows, dropout_p=0.0)[:, :, :3].mean(1) + x.long().sum((2, 3))


@pytest.mark.parametrize("is_decomposed", [False, True])
def test_tensors_that_a_program_makes_are_made_where_the_images_are(is_decomposed: bool) -> None:
    torch.manual_seed(0)
    plain = export(Made().eval(), (images(2),))
    network = read(saved(decomposed(plain) if is_decomposed else plain)).program.network
    torch.testing.assert_close(network(images(3)), Made().eval()(images(3)))
    assert network.to("meta")(images(3).to("meta")).is_meta


class Centred(nn.Module):
    """Answers each image by how it differs from the others."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0, keepdim=True)).mean((2, 3))


class FirstAlone(nn.Module):
    """Answers the first image, whatever comes with it."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:1].mean((2, 3))


@pytest.mark.parametrize("network", [Centred(), FirstAlone()])
def test_a_program_whose_answers_depend_on_the_other_images_is_refused(network: nn.Module) -> None:
    error = refusal(saved(export(network, (images(2),))))
    assert error.message == "'teacher.pt2' answers an image differently when it comes with others."
    assert "dynamic_shapes" in error.hint


class ChangesAView(nn.Module):
    """Changes a part of a tensor in place, and then reads all of it."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        x[:, 0].relu_()
        return x.mean((2, 3))


def test_a_change_in_place_that_a_view_would_show_is_refused_with_a_remedy_that_works() -> None:
    plain = export(ChangesAView(), (images(2),))
    error = refusal(saved(plain))
    assert error.message == "'teacher.pt2' reads 'mul' after another view of its memory was changed in place."
    assert "program.run_decompositions()" in error.hint
    network = read(saved(decomposed(plain))).program.network
    torch.testing.assert_close(network(images(3)), ChangesAView()(images(3)))


class ChangesACopy(nn.Module):
    """Changes a copy in another precision in place, and then reads the original; and the other way round."""

    def forward(self, x: Tensor) -> Tensor:
        copied = x.double()
        copied.relu_()
        same = x.float()
        same.mul_(2)
        return (x + copied).mean((2, 3)).float()


def test_a_change_in_place_shows_where_the_memory_is_the_same_and_not_in_a_copy() -> None:
    network = read(saved(export(ChangesACopy(), (images(2),)))).program.network
    torch.testing.assert_close(network(images(3)), ChangesACopy()(images(3)), rtol=1e-5, atol=1e-5)


class TwoAnswers(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean((2, 3)), x.amax((2, 3))


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x + y).mean((2, 3))


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.zeros(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.answer


class Decided(nn.Module):
    """Answers with the class itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).argmax(1, keepdim=True)


class BatchStatistics(nn.Module):
    """Normalises by the batch even in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, training=True).mean((2, 3))


@pytest.mark.parametrize(
    ("network", "given", "reason"),
    [
        (TwoAnswers(), (images(2),), "gives 2 outputs, and not one tensor"),
        (TwoInputs(), (images(2), images(2)), "takes 2 inputs, and not one tensor"),
        (nn.Identity(), (images(2),), r"answers with a tensor \[1, 3, 8, 8\]"),
        (nn.Linear(4, 3), (torch.rand(2, 4),), "takes something other than images of floating-point numbers"),
        (nn.Flatten(), (images(2).to(torch.uint8),), "takes something other than images of floating-point numbers"),
        (Constant(), (images(2),), "answers with one of its tensors, whatever the images are"),
        (Decided(), (images(2),), "answers with whole numbers and not with logits"),
        (BatchStatistics(), (images(2),), "without running statistics"),
        (nn.Sequential(nn.Flatten(), nn.RReLU()).train(), (images(2),), "uses the operator aten.rrelu"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_program_that_is_no_classifier_is_refused_in_a_sentence(
    network: nn.Module, given: tuple[Tensor, ...], reason: str
) -> None:
    error = refusal(saved(export(network, given)))
    with pytest.raises(InputError, match=reason):
        raise error
    assert error.hint


def test_an_archive_without_a_program_is_refused() -> None:
    content = {name: value for name, value in members().items() if name != MODEL}
    assert "is a torch.export archive of no program" in refusal(packed(content)).message


def test_an_archive_of_two_programs_is_refused() -> None:
    content = members()
    assert "archive of 2 programs" in refusal(packed(content | {"models/b.json": content[MODEL]})).message


def test_another_version_of_the_schema_is_refused_with_the_way_to_save_anew() -> None:
    error = refusal(edited(lambda document: document["schema_version"].update(major=7)))
    assert error.message == "'teacher.pt2' is a torch.export program of schema version 7; version 8 is read."
    assert "torch.export.save(program, 'teacher.pt2')" in error.hint


def test_the_hint_leads_to_a_program_that_is_read(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = refusal(edited(lambda document: document["schema_version"].update(major=7)))
    recipe = "\n".join(line.strip() for line in error.hint.splitlines()[1:])
    exec(recipe, {"torch": torch, "model": residual(), "images": images(2)})  # noqa: S102  the recipe is what is tested
    assert read((tmp_path / "teacher.pt2").read_bytes()).tensors.keys() == found("any batch").tensors.keys()


def test_assertions_are_dropped() -> None:
    def assert_something(graph: Any) -> None:
        scalar = {"target": "_operator.ge", "inputs": [], "outputs": [{"as_sym_bool": {"as_name": "large"}}]}
        count = {
            "name": "a",
            "arg": {"as_sym_int": {"as_name": graph["nodes"][0]["outputs"][0]["as_sym_int"]["as_name"]}},
        }
        scalar["inputs"] = [count, {"name": "b", "arg": {"as_int": 0}}]
        large = {"name": "self", "arg": {"as_sym_bool": {"as_name": "large"}}}
        check = {"target": "torch.ops.aten._assert_scalar.default", "inputs": [large], "outputs": []}
        graph["nodes"] += [scalar, check]

    network = read(graph_edited(assert_something)).program.network
    torch.testing.assert_close(network(images(2)), residual()(images(2)))
