import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.pipeline.errors import InputError, UnsafeInputError
from compress.pipeline.teacher.readers import torch_files
from compress.pipeline.teacher.readers.archives import Archive
from compress.pipeline.teacher.readers.stored import StoredTensor, UnusableTensor
from compress.pipeline.teacher.readers.torch_files import read_plain_pickle, read_torch_legacy, read_torch_zip
from tests.teacher.hostile.making import saved


def read(content: object, *, legacy: bool = False, protocol: int = 2) -> Any:
    reader = read_torch_legacy if legacy else read_torch_zip
    return reader(bytearray(saved(content, protocol, legacy=legacy)), "t.pt")


def made(value: Any) -> Tensor:
    assert isinstance(value, StoredTensor)
    return value.tensor()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).view(2, 3),
        torch.arange(6.0).view(2, 3).t(),
        torch.arange(6.0)[3:],
        torch.arange(6.0)[::2],
        torch.tensor(0.5),
        torch.ones(0, 3),
        torch.ones(1, 2).expand(1, 2),
        torch.arange(4, dtype=torch.int64),
        torch.tensor([True, False]),
        torch.ones(2, dtype=torch.bfloat16),
        torch.ones(2, dtype=torch.complex64),
        nn.Parameter(torch.ones(2)),
    ],
)
def test_tensors_come_back_with_shape_type_and_numbers(tensor: Tensor, legacy: bool) -> None:
    back = made(read({"a": tensor}, legacy=legacy)["a"])
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(back, tensor)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.float8_e4m3fn])
def test_types_without_a_storage_of_their_own_come_back(dtype: torch.dtype) -> None:
    tensor = torch.tensor([1.0, 2.0, 3.0]).to(dtype)
    assert made(read({"a": tensor[1:]})["a"]).tolist() == [2, 3]


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.ones(2, 2).to_sparse(), "sparse"),
        (torch.ones(2, device="meta"), "meta"),
        (torch.ones(2, dtype=torch.complex64).conj(), "lazily conjugated or negated"),
        (torch._neg_view(torch.ones(2)), "lazily conjugated or negated"),
    ],
)
def test_other_tensors_are_known_by_kind(tensor: Tensor, kind: str) -> None:
    found = read({"a": tensor})["a"]
    assert isinstance(found, UnusableTensor) and found.kind == kind


def test_a_storage_that_many_tensors_share_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    whole = Archive.read

    def counted(self: Archive, name: str) -> memoryview:
        names.append(name)
        return whole(self, name)

    monkeypatch.setattr(Archive, "read", counted)
    flat = torch.arange(10.0)
    found = read({str(index): flat[index:] for index in range(10)})
    assert [made(found[str(index)])[0].item() for index in range(10)] == list(range(10))
    assert names.count("archive/data/0") == 1


def test_tensors_that_nobody_asks_for_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(saved({"net": torch.ones(2), "optimizer": torch.zeros(8)}))
    at = content.index(bytes(32))
    content[at] ^= 1  # its checksum is wrong now
    assert made(read_torch_zip(content, "t.pt")["net"]).tolist() == [1, 1]  # type: ignore[index]


def test_a_whole_network_in_the_old_format_is_refused_as_code() -> None:
    # Its pickle refers to classes with their source code beside its storages.
    with pytest.raises(UnsafeInputError, match=r"imports torch\.nn\.modules\.linear\.Linear") as caught:
        read(nn.Linear(2, 2), legacy=True)
    assert "model.state_dict()" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "recipe"),
    [
        (nn.Linear(2, 2), "model = torch.load('t.pt', map_location='cpu', weights_only=False)\n"),
        ({"net": nn.Linear(2, 2)}, "model = torch.load('t.pt', map_location='cpu', weights_only=False)['net']\n"),
        ({"model": {"w": torch.ones(1)}, "loss": nn.MSELoss()}, "{'state_dict': checkpoint['model']}"),
        ([nn.MSELoss()], "{'state_dict': checkpoint['state_dict']}"),
    ],
)
def test_the_recipe_suits_what_is_in_the_file(content: object, recipe: str) -> None:
    with pytest.raises(UnsafeInputError) as caught:
        read(content)
    assert recipe in caught.value.hint


def test_a_long_list_of_imports_is_cut() -> None:
    layers = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.ELU())
    with pytest.raises(UnsafeInputError, match=r"Tanh and 2 more\.") as caught:
        read(layers)
    assert caught.value.message.count(", ") == 4


@pytest.mark.parametrize("reader", [read_torch_zip, read_plain_pickle])
def test_a_pickle_that_is_too_long_is_refused(reader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved({"a": 1}) if reader is read_torch_zip else pickle.dumps({"a": 1})
    monkeypatch.setattr(torch_files, "MOST_BYTES", 10)
    with pytest.raises(InputError, match="holds a pickle of more than 10 bytes"):
        reader(bytearray(content), "t.pt")


def test_bytes_behind_a_plain_pickle_are_refused() -> None:
    with pytest.raises(InputError, match="has other bytes behind its end"):
        read_plain_pickle(bytearray(pickle.dumps({}) + b"x"), "t.pkl")


def test_code_in_a_storage_of_a_plain_pickle_is_named() -> None:
    inner = saved(nn.MSELoss(), legacy=True)
    stream = b"\x80\x03ctorch.storage\n_load_from_bytes\nB" + len(inner).to_bytes(4, "little") + inner + b"\x85R."
    with pytest.raises(UnsafeInputError, match=r"imports torch\.nn\.modules\.loss\.MSELoss"):
        read_plain_pickle(bytearray(stream), "t.pkl")
