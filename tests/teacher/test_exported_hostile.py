"""torch.export programs that nobody should have made: refused in a sentence, and nothing of them runs."""

import json
import pickle
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.pipeline.errors import InputError, UnsafeInputError
from compress.pipeline.teacher.programs.exported import read_exported
from tests.teacher.exported_programs import (
    CONSTANTS,
    MODEL,
    SAMPLES,
    WEIGHTS,
    edited,
    exported,
    graph_edited,
    images,
    members,
    node_of,
    packed,
    residual,
)
from tests.teacher.hostile.making import saved as pickled

Change = Callable[[Any], object]


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


def read(content: bytes) -> Any:
    return read_exported(bytearray(content), "teacher.pt2")


def refusal(content: bytes) -> InputError:
    with pytest.raises(InputError) as caught:
        read(content)
    assert caught.value.exit_code == 3
    assert caught.value.message.startswith("'teacher.pt2' ") and caught.value.message.isprintable()
    assert len(caught.value.message) < 400 and caught.value.hint
    return caught.value


def assert_refused(content: bytes, reason: str) -> None:
    error = refusal(content)
    with pytest.raises(InputError, match=reason):
        raise error


def with_hostile_samples(marker: Path) -> bytes:
    return packed(members() | {SAMPLES: pickled(Canary(marker))})


def test_sample_inputs_are_not_even_opened(tmp_path: Path) -> None:
    network = read(with_hostile_samples(tmp_path / "marker")).program.network
    torch.testing.assert_close(network(images(2)), residual()(images(2)))
    assert not (tmp_path / "marker").exists()


def test_the_canary_among_the_sample_inputs_would_have_shown_an_execution(tmp_path: Path) -> None:
    (tmp_path / "hostile.pt2").write_bytes(with_hostile_samples(tmp_path / "marker"))
    with suppress(TypeError):  # of the reader's message that it loaded unsafely, whose format is wrong
        torch.export.load(tmp_path / "hostile.pt2")
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("table", [WEIGHTS, CONSTANTS])
def test_a_tensor_that_is_said_to_be_a_pickle_is_refused_unopened(tmp_path: Path, table: str) -> None:
    marker = tmp_path / "marker"
    document = json.loads(members()[table])
    name, payload = next(iter(document["config"].items()))
    payload |= {"use_pickle": True, "tensor_meta": None}
    place = f"{table.rpartition('/')[0]}/{payload['path_name']}"
    content = members() | {table: json.dumps(document).encode(), place: pickled(Canary(marker))}
    error = refusal(packed(content))
    assert isinstance(error, UnsafeInputError)
    assert error.message == f"'teacher.pt2' stores '{name}' as a pickle that may execute code when it is read."
    assert not marker.exists()


@pytest.mark.parametrize("place", ["data/weights/model.pt", "data/constants/model.pt"])
@pytest.mark.parametrize("kind", ["hostile", "other", "nested"])
def test_a_pickle_of_anything_but_tensors_in_place_of_them_is_refused(tmp_path: Path, place: str, kind: str) -> None:
    marker = tmp_path / "marker"
    objects = {"hostile": {"a": Canary(marker)}, "other": {"a": 1}, "nested": {"a": {"b": torch.zeros(1)}}}
    error = refusal(packed(members() | {place: pickled(objects[kind])}))
    assert isinstance(error, UnsafeInputError)
    assert f"'archive/{place}' as a pickle that may execute code" in error.message
    assert not marker.exists()


def test_a_bare_pickle_in_place_of_a_state_dict_is_refused(tmp_path: Path) -> None:
    content = members() | {"data/weights/model.pt": pickle.dumps(Canary(tmp_path / "marker"))}
    assert_refused(packed(content), "damaged")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("missing", [WEIGHTS, CONSTANTS, "data/weights/weight_0", "data/constants/tensor_0"])
def test_a_missing_member_is_named(missing: str) -> None:
    content = {name: value for name, value in members().items() if name != missing}
    assert refusal(packed(content)).message == f"'teacher.pt2' lacks its member 'archive/{missing}'."


def first_payload(change: Change) -> Change:
    """Changes the first tensor's entry."""
    return lambda document: change(next(iter(document["config"].values())))


def first_meta(**changes: object) -> Change:
    return first_payload(lambda payload: payload["tensor_meta"].update(changes))


def lengths(*numbers: int) -> list[dict[str, int]]:
    return [{"as_int": number} for number in numbers]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (first_meta(sizes=lengths(8, 3, 3, 4)), "claims a tensor of 288 numbers where 216 are stored"),
        (
            first_meta(sizes=lengths(2**40), strides=lengths(0)),
            "claims a tensor of 1,099,511,627,776 numbers where 216",
        ),
        (first_meta(sizes=lengths(2**62, 2**62), strides=lengths(0, 0)), "has a tensor without a sensible shape"),
        (first_meta(strides=lengths(27, 9, 3, 2)), "has a tensor that reaches beyond its numbers"),
        (first_meta(storage_offset={"as_int": 1}), "has a tensor that reaches beyond its numbers"),
        (first_meta(storage_offset={"as_int": -1}), "has a tensor without a sensible shape"),
        (first_meta(strides=lengths(-27, 9, 3, 1)), "has a tensor without a sensible shape"),
        (first_meta(strides=lengths(9, 3, 1)), "has a tensor without a sensible shape"),
        (
            first_meta(sizes=[{"as_expr": {"expr_str": "__import__('os')"}}] * 4),
            "has a tensor without a sensible shape",
        ),
        (first_meta(sizes=lengths(*[1] * 65), strides=lengths(*[1] * 65)), "has no sensible .*sizes"),
        (first_meta(sizes=[{"as_int": 2**70}]), "has no sensible .*sizes"),
        (first_meta(sizes=[{"as_int": "8"}]), "has no sensible .*sizes"),
        (first_meta(dtype=10), "as something other than plain numbers"),
        (first_meta(dtype=29), "as something other than plain numbers"),
        (first_meta(layout=1), "as something other than plain numbers"),
        (first_meta(dtype=8), "claims a tensor of 216 numbers where 108 are stored"),
        (first_payload(lambda payload: payload.update(tensor_meta=None)), "as a pickle that may execute code"),
        (first_payload(lambda payload: payload.update(path_name="../sample_inputs/model.pt")), "lacks its member"),
        (first_payload(lambda payload: payload.update(path_name="/etc/passwd")), "lacks its member"),
        (first_payload(lambda payload: payload.update(path_name=["weight_0"])), "has no sensible .*path_name"),
        (lambda document: document.clear(), "has no sensible 'config'"),
        (lambda document: document["config"].pop("head.weight"), "refers to the tensor 'head.weight', which it does"),
    ],
)
def test_a_tensor_that_cannot_be_what_it_claims_is_refused(change: Change, reason: str) -> None:
    assert_refused(edited(change, WEIGHTS), reason)


def test_many_names_for_one_large_tensor_are_refused_before_any_of_them_is_made() -> None:
    content, document = members(), json.loads(members()[WEIGHTS])
    meta = next(iter(document["config"].values()))["tensor_meta"] | {"sizes": lengths(2**18), "strides": lengths(1)}
    payload = {"path_name": "weight_0", "is_param": False, "use_pickle": False, "tensor_meta": meta}
    document["config"] = {f"copy{index}": payload for index in range(1500)}
    content |= {WEIGHTS: json.dumps(document).encode(), "data/weights/weight_0": bytes(2**20)}
    assert_refused(packed(content), r"is small but declares 1,572,\d{3},\d{3} bytes of tensors")  # 1500 x 2**20


BOMBS = {
    "deep": (b"[" * 100_000, "its document is no JSON"),
    "values": (b'{"a":[' + b"[]," * 2_000_000 + b"1]}", "of JSON, which is too much"),
    "long": (b'"' + b"a" * 2**26 + b'"', "of JSON, which is too much"),
    "digits": (b'{"schema_version":{"major":' + b"9" * 10_000 + b"}}", "its document is no JSON"),
    "text": (b"not JSON", "its document is no JSON"),
    "nothing": (b"", "its document is no JSON"),
    "list": (b"[]", "its document is no JSON object"),
    "encoding": (b'{"a": "\xff"}', "its document is no JSON"),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("member", [MODEL, WEIGHTS])
def test_json_that_is_none_or_too_much_is_refused(bomb: str, member: str) -> None:
    content, reason = BOMBS[bomb]
    assert_refused(packed(members() | {member: content}), reason)


def test_too_many_calls_or_entries_are_refused() -> None:
    assert_refused(graph_edited(lambda graph: graph.update(nodes=[1] * 20_001)), r"no sensible '.*nodes'")
    assert_refused(
        edited(lambda document: document.update(config={str(i): 1 for i in range(50_001)}), WEIGHTS), "config"
    )


def retargeted(target: str) -> bytes:
    """The first convolution's operator replaced."""
    return graph_edited(lambda graph: node_of(graph, "conv2d").update(target=target))


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.aten.copy_.default",
        "torch.ops.aten.resize_.default",
        "torch.ops.aten.as_strided.default",
        "torch.ops.aten.bernoulli.p",
        "torch.ops.aten.conv2d.__globals__",
        "torch.ops.aten.__class__",
        "torch.ops.prims.convert_element_type.default",
        "torch.ops.higher_order.wrap_with_set_grad_enabled",
        "torch.ops.higher_order.cond",
        "torch.ops.my_library.my_operator.default",
        "torch.ops.load_library",
        "torch.load",
        "os.system",
        "builtins.eval",
        "#triton_kernel",
        "_operator.call",
        "math.factorial",
        "call\x1b[2Jme",
        "",
        ".",
    ],
)
def test_an_operator_that_a_teacher_may_not_use_is_refused_by_name(target: str) -> None:
    assert_refused(retargeted(target), "uses the operator .*, which a teacher may not")


def test_an_operator_that_a_teacher_may_not_use_is_refused_even_where_nothing_uses_its_result() -> None:
    unused = {"target": "torch.ops.aten.from_file.default", "inputs": [], "outputs": [{"as_tensor": {"name": "f"}}]}
    assert_refused(
        graph_edited(lambda graph: graph["nodes"].append(unused)), "uses the operator aten.from_file.default"
    )


def first_argument(value: object) -> Change:
    return lambda graph: node_of(graph, "conv2d")["inputs"][0].update(arg=value)


def size_of_view(*sizes: int) -> Change:
    return lambda graph: node_of(graph, "view")["inputs"][1].update(arg={"as_ints": list(sizes)})


def extra_call(target: str, *arguments: object) -> Change:
    """A call on the images whose result stands in for what the first convolution takes."""

    def add(graph: Any) -> None:
        schema = ("self", *{"repeat": ("repeats",), "new_full": ("size", "fill_value")}[target.split(".")[3]])
        given = [{"as_tensor": {"name": "x"}}, *arguments]
        inputs = [{"name": name, "arg": arg} for name, arg in zip(schema, given, strict=True)]
        node_of(graph, "conv2d")["inputs"][0]["arg"]["as_tensor"]["name"] = "bomb"
        node = {"target": target, "inputs": inputs, "outputs": [{"as_tensor": {"name": "bomb"}}]}
        graph["nodes"].insert(0, node)

    return add


HUGE = {"as_ints": [1, 1, 2**20, 2**20]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (first_argument({"as_tensor": {"name": "nowhere"}}), "refers to 'nowhere', which it does not have"),
        (first_argument({"as_tensor": {"name": "linear"}}), "refers to 'linear', which it does not have"),  # a cycle
        (first_argument({"as_graph": {"name": "g", "graph": {}}}), "an argument of the kind as_graph"),
        (first_argument({"as_custom_obj": {"name": "o", "class_fqn": "os"}}), "an argument of the kind as_custom_obj"),
        (first_argument({"as_operator": "torch.ops.aten.add"}), "an argument of the kind as_operator"),
        (first_argument({"as_complex": {"real": 1, "imag": 1}}), "an argument of the kind as_complex"),
        (first_argument({"as_int": 1, "as_float": 1.0}), "an argument of the kind as_float and as_int"),
        (first_argument({}), "an argument of the kind nothing"),
        (first_argument({"as_int": 1}), "cannot be computed at 'conv2d'"),
        (first_argument({"as_none": True}), "cannot be computed at 'conv2d'"),
        (first_argument({"as_scalar_type": 10}), "an argument of the kind as_scalar_type"),
        (lambda graph: node_of(graph, "conv2d")["inputs"].pop(0), "cannot be computed at 'conv2d'"),
        (lambda graph: node_of(graph, "conv2d")["inputs"][0].update(name="x; import os"), "arguments that it does not"),
        (lambda graph: node_of(graph, "relu_").update(outputs=[{"as_tensor": {"name": "conv2d"}}]), "'conv2d' twice"),
        (lambda graph: node_of(graph, "batch_norm")["inputs"].pop(3), "without running statistics"),
        (lambda graph: node_of(graph, "batch_norm")["inputs"].pop(7), "without a number for its eps"),
        (size_of_view(-1, 7), "cannot be computed at 'view'"),
        (size_of_view(1, -1), "cannot be computed at|answers an image differently"),
        (size_of_view(-1, 2**62), "cannot be computed at 'view'"),
        (extra_call("torch.ops.aten.repeat.default", HUGE), "would make a tensor of 211,106,232,532,992 numbers"),
        (
            extra_call("torch.ops.aten.new_full.default", HUGE, {"as_int": 0}),
            "would make a tensor of 1,099,511,627,776",
        ),
        (lambda graph: graph["tensor_values"].pop("x"), "something other than images"),
        (
            lambda graph: graph["tensor_values"]["x"].update(sizes=lengths(2, 3, 2**40, 2**40)),
            "takes images of 3,626,777,458,843,887,524,118,528 numbers",
        ),
        (lambda graph: graph["tensor_values"]["x"].update(sizes=lengths(0, 3, 8, 8)), "something other than images"),
    ],
)
def test_a_graph_that_makes_no_sense_is_refused(change: Change, reason: str) -> None:
    assert_refused(graph_edited(change), reason)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"token": {"arg": {"name": "t"}}}, "needs objects other than tensors"),
        ({"custom_obj": {"arg": {"name": "o", "class_fqn": "c"}, "custom_obj_name": "o"}}, "needs objects other than"),
        ({"user_input": {"arg": {"as_sym_int": {"as_name": "n"}}}}, "takes 2 inputs, and not one tensor"),
        (
            {"buffer": {"arg": {"name": "b"}, "buffer_name": "missing", "persistent": True}},
            "refers to the tensor 'missing'",
        ),
        ({"parameter": {"arg": {"name": "x"}, "parameter_name": "head.weight"}}, "defines 'x' twice"),
    ],
)
def test_inputs_that_are_no_images_or_tensors_are_refused(spec: object, reason: str) -> None:
    def add(document: Any) -> None:
        document["graph_module"]["signature"]["input_specs"].append(spec)

    assert_refused(edited(add), reason)


def test_a_truncated_file_is_refused() -> None:
    whole = exported()
    for length in range(0, len(whole), len(whole) // 25):
        refusal(whole[:length])


def outcome(content: bytes) -> bool:
    """Whether a damaged file is refused; whatever else it raises fails the test."""
    try:
        read(content)
    except InputError:
        return True
    return False


@pytest.mark.filterwarnings("ignore::UserWarning")  # whatever torch thinks of damaged numbers
def test_damaged_bytes_never_end_in_another_error() -> None:
    whole, chance = exported("two images"), random.Random(0)
    refused = 0
    for _ in range(40):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        refused += outcome(bytes(damaged))
    assert refused > 20  # nearly every byte is under a checksum


def numbers_in(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a document that holds a whole number, with the number's place."""
    places = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [(value, key) for key, inner in places if type(inner) is int]
    return found + [place for _, inner in list(places) for place in numbers_in(inner)]


def check_wrong_numbers(tries: int, seed: int) -> None:
    chance, document = random.Random(seed), json.loads(members("two images")[MODEL])
    graph = document["graph_module"]["graph"]
    places = numbers_in(graph["nodes"]) + numbers_in(graph["tensor_values"])
    for _ in range(tries):
        container, key = chance.choice(places)
        honest, container[key] = container[key], chance.choice((-1, 0, 1, 2, 3, 1000, 2**31, 2**40, -(2**40), 2**62))
        outcome(packed(members("two images") | {MODEL: json.dumps(document).encode()}))
        container[key] = honest


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_wrong_numbers_in_a_graph_never_end_in_another_error() -> None:
    check_wrong_numbers(tries=25, seed=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_wrong_numbers_in_a_graph_never_end_in_another_error(seed: int) -> None:
    check_wrong_numbers(tries=500, seed=seed)
