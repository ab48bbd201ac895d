import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.readers.stored import Storage, stored_tensor
from compress.pipeline.teacher.readers.weights import Tidied, as_float32, tidy, without_wrappers

WEIGHTS: dict[str, Tensor] = {
    "conv1.weight": torch.ones(2, 1, 3, 3),
    "bn1.running_var": torch.ones(2),
    "fc.weight": torch.ones(3, 2),
}
LIMIT = 10**6


def tidied(weights: dict[str, Tensor]) -> Tidied:
    return tidy(weights, "t.pt", LIMIT)


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "model.",
        "_orig_mod.",
        "backbone.",
        "net.",
        "network.",
        "encoder.",
        "student.",
        "module._orig_mod.model.",
    ],
)
def test_prefixes_of_wrappers_are_taken_off(prefix: str) -> None:
    assert without_wrappers({prefix + name: tensor for name, tensor in WEIGHTS.items()}) == WEIGHTS


def test_a_prefix_of_most_layers_is_taken_off_them() -> None:
    given = {"backbone.conv1.weight": 1, "backbone.bn1.bias": 2, "fc.weight": 3}
    assert without_wrappers(given) == {"conv1.weight": 1, "bn1.bias": 2, "fc.weight": 3}


def test_a_prefix_of_few_layers_stays() -> None:
    given = {"backbone.conv1.weight": 1, "neck.weight": 2, "head.weight": 3}
    assert without_wrappers(given) == given


def test_a_part_of_a_transformer_is_no_wrapper() -> None:
    given = {"encoder.layers.0.weight": 1, "encoder.ln.weight": 2, "heads.head.weight": 3}
    assert without_wrappers(given) == given


def test_prefixes_stay_where_two_tensors_would_get_one_name() -> None:
    given = {"model.fc.weight": 1, "model.fc.bias": 2, "fc.weight": 3}
    assert without_wrappers(given) == given


def test_no_tensors_have_no_wrappers() -> None:
    assert without_wrappers({}) == {}


@pytest.mark.parametrize(
    ("meant", "other"), [("teacher", "student"), ("model", "ema_model"), ("net", "ema"), ("module", "model_ema")]
)
@pytest.mark.parametrize("outer", ["", "module.", "_orig_mod."])
def test_of_two_networks_side_by_side_one_is_meant(outer: str, meant: str, other: str) -> None:
    given = {
        f"{outer}{part}.{name}": tensor * scale
        for part, scale in ((other, 0), (meant, 1))
        for name, tensor in WEIGHTS.items()
    }
    found = tidied(given)
    assert found.tensors.keys() == WEIGHTS.keys()
    assert all(bool(tensor.all()) for tensor in found.tensors.values())
    assert found.notes[0].startswith("3 tensors of another network in the file were left out")


def test_settings_of_an_average_are_no_network() -> None:
    found = tidied({f"model.{name}": tensor for name, tensor in WEIGHTS.items()} | {"ema.decay": torch.ones(())})
    assert found.tensors.keys() == WEIGHTS.keys()
    assert found.notes == ("A tensor of another network in the file was left out, such as 'ema.decay'.",)


def test_losses_and_metrics_are_left_out() -> None:
    beside = {
        "criterion.weight": torch.ones(3),
        "train_acc.correct": torch.ones(1),
    }
    found = tidied({f"model.{name}": tensor for name, tensor in WEIGHTS.items()} | beside)
    assert found.tensors.keys() == WEIGHTS.keys()
    assert found.notes == ("2 tensors of the training's loss or metrics were left out, such as 'criterion.weight'.",)


def test_counts_of_profilers_are_left_out() -> None:
    found = tidied(WEIGHTS | {"total_ops": torch.zeros(1), "layer1.0.total_params": torch.zeros(1)})
    assert found.tensors.keys() == WEIGHTS.keys()
    assert found.notes == ("2 tensors of a profiler were left out, such as 'total_ops'.",)


def test_indices_are_left_out() -> None:
    found = tidied(WEIGHTS | {"attention.relative_position_index": torch.zeros(4, dtype=torch.int64)})
    assert found.tensors.keys() == WEIGHTS.keys()
    assert found.notes == ("A tensor of integers was left out, such as 'attention.relative_position_index'.",)


@pytest.mark.parametrize(
    "count", [torch.tensor(7), torch.tensor([7]), torch.tensor(7.0), torch.tensor(7, dtype=torch.int32)]
)
def test_batch_counters_are_kept_apart_by_module(count: Tensor) -> None:
    found = tidied({f"module.{name}": t for name, t in WEIGHTS.items()} | {"module.bn1.num_batches_tracked": count})
    assert found.batches_tracked == {"bn1": 7}
    assert found.tensors.keys() == WEIGHTS.keys()
    assert found.notes == ()


@pytest.mark.parametrize(
    "count", [torch.ones(2), torch.tensor(-1), torch.tensor(float("nan")), torch.tensor(1, device="meta")]
)
def test_counters_that_count_nothing_are_dropped(count: Tensor) -> None:
    assert tidied(WEIGHTS | {"bn1.num_batches_tracked": count}).batches_tracked == {}


def test_pruned_weights_are_multiplied_by_their_masks() -> None:
    layer = nn.Linear(8, 8)
    prune.l1_unstructured(layer, "weight", amount=0.5)
    found = tidied(dict(layer.state_dict()))
    assert found.tensors.keys() == {"weight", "bias"}
    assert torch.equal(found.tensors["weight"], layer.weight)
    assert int((found.tensors["weight"] == 0).sum()) == 32  # half of 8 x 8


def test_a_mask_of_another_shape_is_left_as_it_is() -> None:
    given = {"weight_orig": torch.ones(2, 2), "weight_mask": torch.ones(4)}
    assert tidied(given).tensors.keys() == given.keys()


def test_stored_tensors_are_compared_with_the_limit_before_they_are_made() -> None:
    def fetch() -> memoryview:
        raise AssertionError("the numbers were read")

    stored = stored_tensor(Storage(torch.float32, 2**30, fetch), torch.float32, 0, (2**30,), (1,))
    with pytest.raises(InputError, match=r"'t\.pt' is small but declares 4,294,967,296 bytes of weights"):  # 4 x 2**30
        tidy({"w": stored}, "t.pt", LIMIT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype: torch.dtype) -> None:
    converted = as_float32({"a": torch.tensor([0.5, -2.0], dtype=dtype)}, "t.pt", LIMIT)
    assert converted["a"].dtype == torch.float32
    assert converted["a"].tolist() == [0.5, -2.0]


def test_the_result_is_a_copy_without_gradients() -> None:
    given = torch.ones(2, requires_grad=True)
    converted = as_float32({"a": given}, "t.pt", LIMIT)["a"]
    assert converted.data_ptr() != given.data_ptr() and not converted.requires_grad


def test_batch_counters_are_left_out() -> None:
    assert as_float32({"bn1.num_batches_tracked": torch.tensor(7)}, "t.pt", LIMIT) == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(value: float) -> None:
    with pytest.raises(InputError, match=r"NaN or infinite numbers in 'fc\.weight'"):
        as_float32({"fc.weight": torch.tensor([1.0, value])}, "t.pt", LIMIT)


def test_double_precision_beyond_float32_is_refused() -> None:
    with pytest.raises(InputError, match="NaN or infinite numbers in 'a'"):
        as_float32({"a": torch.tensor([1e300], dtype=torch.float64)}, "t.pt", LIMIT)


def test_a_negative_variance_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"negative variance in 'bn1\.running_var'"):
        as_float32({"bn1.running_var": torch.tensor([1.0, -1e-3])}, "t.pt", LIMIT)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.ones(2, dtype=torch.int8), "int8"),
        (torch.ones(2, dtype=torch.int64), "int64"),
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.ones(2).to(torch.float8_e5m2), "float8_e5m2"),
        (torch.ones(2, 2).to_sparse(), "float32"),
        (torch.ones(2, device="meta"), "float32"),
    ],
)
def test_tensors_that_are_not_plain_numbers_are_refused(tensor: Tensor, kind: str) -> None:
    with pytest.raises(InputError, match=f"holds 'a.weight' as {kind} rather than plain floating-point numbers"):
        tidied({"a.weight": tensor})


def test_empty_tensors_are_refused() -> None:
    with pytest.raises(InputError, match="has no numbers in 'a'"):
        as_float32({"a": torch.ones(0, 3)}, "t.pt", LIMIT)


def test_more_bytes_than_the_limit_are_refused() -> None:
    with pytest.raises(InputError, match="declares 12 bytes of weights"):
        as_float32({"a": torch.ones(3)}, "t.pt", limit=11)
