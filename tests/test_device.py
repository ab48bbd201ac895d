from collections.abc import Iterator

import pytest
import torch
from torch import nn

from compress.pipeline.device import Compute, choose_compute, derived_seed, on_device
from compress.pipeline.errors import MissingResourceError
from compress.pipeline.settings import Settings


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)


@pytest.fixture
def threads() -> Iterator[int]:
    """Their number, put back afterwards."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_without_a_gpu_everything_runs_on_the_cpu(device: str) -> None:
    assert choose_compute(Settings(device=device)).device == torch.device("cpu")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("device", "chosen"), [("auto", "cuda"), ("cuda", "cuda"), ("cuda:1", "cuda:1"), ("cpu", "cpu")]
)
def test_a_gpu_is_taken_where_there_is_one_unless_told_otherwise(device: str, chosen: str) -> None:
    assert choose_compute(Settings(device=device, precision="fp32")).device == torch.device(chosen)


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_is_asked_for_and_missing_is_an_error() -> None:
    with pytest.raises(MissingResourceError, match="There is no device 'cuda' here") as caught:
        choose_compute(Settings(device="cuda"))
    assert caught.value.exit_code == 5
    assert caught.value.hint == "Leave --device out, or say --device cpu."


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_beyond_the_last_is_an_error() -> None:
    with pytest.raises(MissingResourceError, match="There is no device 'cuda:2' here"):
        choose_compute(Settings(device="cuda:2"))


@pytest.mark.parametrize("supported", [False, True])
@pytest.mark.parametrize(("precision", "expected"), [("fp32", False), ("bf16", True), ("auto", None)])
def test_auto_multiplies_in_bf16_where_the_cpu_does(
    monkeypatch: pytest.MonkeyPatch, supported: bool, precision: str, expected: bool | None
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    compute = choose_compute(Settings.model_validate({"device": "cpu", "precision": precision}))
    assert compute.bf16 is (supported if expected is None else expected)


@pytest.mark.usefixtures("two_gpus")
def test_auto_multiplies_in_bf16_where_the_gpu_does() -> None:
    assert choose_compute(Settings(device="cuda")).bf16


@pytest.mark.usefixtures("no_gpu")
def test_threads_are_set_only_when_asked(threads: int) -> None:
    choose_compute(Settings(device="cpu"))
    assert torch.get_num_threads() == threads
    choose_compute(Settings(device="cpu", threads=threads + 1))
    assert torch.get_num_threads() == threads + 1


@pytest.mark.parametrize(("bf16", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_matrix_products_run_in_the_chosen_precision(bf16: bool, dtype: torch.dtype) -> None:
    compute = Compute(device=torch.device("cpu"), bf16=bf16)
    with compute.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    compute.synchronise()  # has nothing to wait for on a CPU


def test_the_title_says_what_the_numbers_depend_on(threads: int) -> None:
    torch.set_num_threads(3)
    assert Compute(device=torch.device("cpu"), bf16=True).title == "CPU, 3 threads, bf16"
    assert Compute(device=torch.device("cpu"), bf16=False).title == "CPU, 3 threads, fp32"


def test_a_module_on_its_device_is_laid_out_for_convolutions_and_computes_the_same() -> None:
    network, images = nn.Conv2d(3, 4, 3), torch.rand(2, 3, 6, 6)
    before = network(images)
    moved = on_device(network, Compute(device=torch.device("cpu"), bf16=False))
    assert moved is network
    assert moved.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(moved(images), before)


def test_a_derived_seed_is_half_of_the_first_eight_bytes_of_a_hash() -> None:
    # sha256(b"0:round:3") begins with 9b400e511a0f76bb; shifted right by one bit
    assert derived_seed(0, "round", 3) == 0x9B400E511A0F76BB >> 1 == 5593478607940336477


def test_every_seed_and_purpose_has_random_numbers_of_its_own() -> None:
    seeds = [derived_seed(seed, "round", number) for seed in range(20) for number in range(20)]
    seeds += [derived_seed(seed, purpose) for seed in range(20) for purpose in ("student", "generator", "probe kinds")]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    for seed in seeds:
        torch.manual_seed(seed)  # takes any of them
