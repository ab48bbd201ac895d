from typing import Any

import pytest
import torch
from torch import Tensor

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.weights import as_float32, find_weights, without_wrappers

WEIGHTS: dict[str, Tensor] = {"conv1.weight": torch.ones(2, 1, 3, 3), "bn1.running_var": torch.ones(2)}


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", "ema", "teacher"])
def test_weights_are_found_beside_what_else_training_saved(key: str) -> None:
    found = find_weights({"epoch": 3, "optimizer": {"state": {}}, key: WEIGHTS}, "t.pt")
    assert found.weights == WEIGHTS
    assert found.location == f"weights under '{key}'"


def test_weights_are_found_two_dictionaries_deep() -> None:
    found = find_weights({"model": {"state_dict": WEIGHTS, "name": "resnet"}}, "t.pt")
    assert found.weights == WEIGHTS
    assert found.location == "weights under 'model' and 'state_dict'"


def test_a_description_under_a_usual_key_does_not_hide_the_weights() -> None:
    assert find_weights({"model": {"name": "resnet20"}, "net": WEIGHTS}, "t.pt").weights == WEIGHTS


def test_a_second_set_of_weights_is_reported() -> None:
    assert find_weights({"model": WEIGHTS, "ema": WEIGHTS}, "t.pt").also == ("ema",)


def test_metadata_is_gathered_on_every_level_and_the_outer_one_counts() -> None:
    inner = {"state_dict": WEIGHTS, "input_size": 4, "mean": 0.5}
    assert find_weights({"model": inner, "input_size": 8}, "t.pt").metadata == {"input_size": 8, "mean": 0.5}


def test_normalisation_tensors_beside_the_weights_are_metadata() -> None:
    mean = torch.full((1, 1, 1, 1), 0.5)
    found = find_weights(WEIGHTS | {"mean": mean}, "t.pt")
    assert found.weights == WEIGHTS
    assert found.metadata == {"mean": mean}


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


def test_a_list_is_refused() -> None:
    with pytest.raises(InputError, match=r"'t\.pt' holds a list, not a dictionary of weights"):
        find_weights([1], "t.pt")


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "backbone.", "module._orig_mod.model."])
def test_prefixes_of_wrappers_are_taken_off(prefix: str) -> None:
    assert without_wrappers({prefix + name: tensor for name, tensor in WEIGHTS.items()}) == WEIGHTS


def test_a_prefix_of_some_layers_only_is_taken_off_them() -> None:
    given = {"backbone.conv1.weight": torch.ones(1), "fc.weight": torch.ones(1)}
    assert list(without_wrappers(given)) == ["conv1.weight", "fc.weight"]


def test_prefixes_stay_where_two_tensors_would_get_one_name() -> None:
    given = {"model.fc.weight": torch.ones(1), "fc.weight": torch.ones(1)}
    assert without_wrappers(given) == given


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype: torch.dtype) -> None:
    converted = as_float32({"a": torch.tensor([0.5, -2.0], dtype=dtype)}, "t.pt", limit=100)
    assert converted["a"].dtype == torch.float32
    assert converted["a"].tolist() == [0.5, -2.0]


def test_batch_counters_are_left_out() -> None:
    assert as_float32({"bn1.num_batches_tracked": torch.tensor(7)}, "t.pt", limit=100) == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(value: float) -> None:
    with pytest.raises(InputError, match=r"NaN or infinite numbers in 'fc\.weight'"):
        as_float32({"fc.weight": torch.tensor([1.0, value])}, "t.pt", limit=100)


def test_double_precision_beyond_float32_is_refused() -> None:
    with pytest.raises(InputError, match="NaN or infinite numbers in 'a'"):
        as_float32({"a": torch.tensor([1e300], dtype=torch.float64)}, "t.pt", limit=100)


def test_a_negative_variance_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"negative variance in 'bn1\.running_var'"):
        as_float32({"bn1.running_var": torch.tensor([1.0, -1e-3])}, "t.pt", limit=100)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.ones(2, dtype=torch.int8), "int8"),
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.ones(2, 2).to_sparse(), "float32"),
        (torch.ones(2, device="meta"), "float32"),
    ],
)
def test_tensors_that_are_not_plain_numbers_are_refused(tensor: Tensor, kind: str) -> None:
    with pytest.raises(InputError, match=f"holds 'a' as {kind} rather than plain floating-point numbers"):
        as_float32({"a": tensor}, "t.pt", limit=100)


def test_empty_tensors_are_refused() -> None:
    with pytest.raises(InputError, match="has no numbers in 'a'"):
        as_float32({"a": torch.ones(0, 3)}, "t.pt", limit=100)


def test_more_bytes_than_the_limit_are_refused() -> None:
    with pytest.raises(InputError, match="declares 12 bytes of weights"):
        as_float32({"a": torch.ones(3)}, "t.pt", limit=11)
