import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.readers.contents import WEIGHT_KEYS, find_weights
from compress.pipeline.teacher.readers.pickles import Inert
from compress.pipeline.teacher.readers.stored import UnusableTensor
from compress.pipeline.teacher.readers.torch_files import read_plain_pickle

WEIGHTS: dict[str, Tensor] = {"conv1.weight": torch.ones(2, 1, 3, 3), "bn1.running_var": torch.ones(2)}


@pytest.mark.parametrize("key", WEIGHT_KEYS)
def test_weights_are_found_beside_what_else_training_saved(key: str) -> None:
    found = find_weights({"epoch": 3, "optimizer": {"state": {}}, key: WEIGHTS}, "t.pt")
    assert found.weights == WEIGHTS
    assert found.location == f"weights under '{key}'"


def test_a_dictionary_of_tensors_is_a_bare_state_dict() -> None:
    assert find_weights(WEIGHTS, "t.pt").location == "a bare state_dict"


def test_weights_are_found_two_dictionaries_deep() -> None:
    found = find_weights({"model": {"state_dict": WEIGHTS, "name": "resnet"}}, "t.pt")
    assert found.weights == WEIGHTS
    assert found.location == "weights under 'model' and 'state_dict'"


def test_a_description_under_a_usual_key_does_not_hide_the_weights() -> None:
    settings = {"name": "resnet20", "options": {"depth": 20}}
    assert find_weights({"model": settings, "net": WEIGHTS}, "t.pt").weights == WEIGHTS


def test_the_only_dictionary_with_layers_will_do_under_any_key() -> None:
    content = {
        "resnet20": WEIGHTS,
        "optimizer": {"state": {0: {}}, "lr": torch.ones(1)},
        "scores": {"top1": torch.ones(1)},
    }
    assert find_weights(content, "t.pt").location == "weights under 'resnet20'"


def test_of_two_dictionaries_with_layers_under_other_keys_none_is_taken() -> None:
    with pytest.raises(
        InputError, match=r"holds no weights where they usually are; it has 'generator', 'discriminator'"
    ):
        find_weights({"generator": WEIGHTS, "discriminator": WEIGHTS}, "t.pt")


def test_a_second_set_of_weights_is_reported() -> None:
    assert find_weights({"model": WEIGHTS, "ema": WEIGHTS}, "t.pt").also == ("ema",)


def test_metadata_is_gathered_on_every_level_and_the_outer_one_counts() -> None:
    inner = {"state_dict": WEIGHTS, "input_size": 4, "mean": 0.5}
    assert find_weights({"model": inner, "input_size": 8}, "t.pt").metadata == {"input_size": 8, "mean": 0.5}


def test_metadata_of_timm_are_found_and_count_less_than_ones_beside_the_weights() -> None:
    settings = {"mean": (0.1, 0.2, 0.3), "std": [0.4, 0.5, 0.6], "input_size": (3, 32, 32), "crop_pct": 1.0}
    found = find_weights({"state_dict": WEIGHTS, "pretrained_cfg": settings, "std": 0.5}, "t.pt")
    assert found.metadata == {"mean": (0.1, 0.2, 0.3), "std": 0.5, "input_size": (3, 32, 32)}


def test_normalisation_tensors_beside_the_weights_are_metadata() -> None:
    mean = torch.full((1, 1, 1, 1), 0.5)
    found = find_weights(WEIGHTS | {"mean": mean}, "t.pt")
    assert found.weights == WEIGHTS
    assert found.metadata == {"mean": mean}


def test_numpy_arrays_may_be_metadata() -> None:
    content = {"mean": np.array([0.5, 0.25]), "input_size": np.int64(32), "net": {"w": np.ones(2)}}
    tree = read_plain_pickle(bytearray(pickle.dumps(content)), "t.pt")
    metadata = find_weights(tree, "t.pt").metadata
    assert isinstance(metadata["mean"], Tensor) and metadata["mean"].tolist() == [0.5, 0.25]
    assert metadata["input_size"] == 32


@pytest.mark.parametrize("value", [list(range(65)), [[0.5]], {"a": 1}, torch.ones(3), None])
def test_what_is_no_number_and_no_few_numbers_is_no_metadata(value: object) -> None:
    found = find_weights({"net": WEIGHTS, "mean": value}, "t.pt")
    assert found.metadata == ({} if not isinstance(value, Tensor) else {"mean": value})


@pytest.mark.parametrize(
    "content",
    [
        {"classes": ["cat", "dog", "eel"]},
        {"class_names": ("cat", "dog", "eel")},
        {"class_to_idx": {"dog": 1, "eel": 2, "cat": 0}},  # of torchvision's ImageFolder
        {"idx_to_class": {2: "eel", 0: "cat", 1: "dog"}},
        {"id2label": {"0": "cat", "1": "dog", "2": "eel"}},
        {"labels": [0, 1, 1], "classes": ["cat", "dog", "eel"]},
    ],
)
def test_class_names_are_found_in_the_order_of_the_outputs(content: dict[str, object]) -> None:
    assert find_weights({"net": WEIGHTS, **content}, "t.pt").labels == ("cat", "dog", "eel")


@pytest.mark.parametrize(
    "value",
    [
        ["cat"],
        ["cat", ""],
        ["cat", 1],
        ["cat", "x" * 1001],
        {"cat": 0, "dog": 2},
        {"cat": 0, "dog": 0},
        {0: "cat", "a": "dog"},
        {"cat": "0", "dog": "1"},
        torch.ones(2),
        "cat",
        10,
    ],
)
def test_what_are_no_class_names_is_not_taken_for_some(value: object) -> None:
    assert find_weights({"net": WEIGHTS, "classes": value}, "t.pt").labels == ()


def test_a_dictionary_without_weights_is_refused_with_its_keys() -> None:
    with pytest.raises(InputError, match=r"it has 'a', 'b', 'c', 'd', 'e', 'f' and 1 more\."):
        find_weights(dict.fromkeys("abcdefg", 0), "t.pt")


def test_an_empty_dictionary_is_refused() -> None:
    with pytest.raises(InputError, match="it has nothing"):
        find_weights({}, "t.pt")


def test_a_dictionary_that_holds_itself_is_refused() -> None:
    endless: dict[str, Any] = {}
    endless["model"] = endless
    with pytest.raises(InputError, match="holds no weights"):
        find_weights(endless, "t.pt")


@pytest.mark.parametrize(("tree", "what"), [([1], "list"), (7, "int"), (torch.ones(1), "tensor"), (Inert(), "object")])
def test_what_is_no_dictionary_is_refused(tree: object, what: str) -> None:
    with pytest.raises(InputError, match=rf"'t\.pt' holds one {what}, not a dictionary of weights"):
        find_weights(tree, "t.pt")


def test_tensors_of_other_kinds_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"'t\.pt' holds 'fc\.weight' as quantized rather than plain floating-point"):
        find_weights({"state_dict": WEIGHTS | {"fc.weight": UnusableTensor("quantized")}}, "t.pt")


def test_tensors_of_other_kinds_beside_the_weights_do_no_harm() -> None:
    assert find_weights({"net": WEIGHTS, "mask": UnusableTensor("sparse")}, "t.pt").weights == WEIGHTS
