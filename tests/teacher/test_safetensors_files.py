import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.readers.safetensors_files import index_in, read_index, read_safetensors
from compress.pipeline.teacher.reading import read_checkpoint
from tests.teacher.benign import shards
from tests.teacher.hostile.making import saved
from tests.teacher.hostile.others import SAFETENSORS

TENSORS = {"fc.weight": torch.arange(6.0).view(2, 3), "fc.bias": torch.ones(2), "step": torch.tensor(7)}


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    return caught.value.message


def with_index(folder: Path, places: object) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return path


INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS, torch.complex64])
def test_what_its_own_package_writes_is_read_alike(dtype: torch.dtype) -> None:
    given = {
        "a": torch.tensor([[1, 0, 1]]).to(dtype),
        "b": torch.ones(()).to(dtype),
        "empty": torch.ones(0, 3).to(dtype),
    }
    tensors, metadata = read_safetensors(bytearray(save(given)), "t")
    assert metadata == {}
    assert tensors.keys() == given.keys()
    for name, tensor in given.items():
        assert (tensors[name].dtype, tensors[name].tolist()) == (dtype, tensor.tolist())
        assert tensors[name].shape == tensor.shape


def test_metadata_that_hold_json_become_what_they_hold() -> None:
    metadata = {"input_size": "[3, 8, 8]", "mean": "0.5", "std": "not JSON", "deep": "[" * 100_000}
    assert read_safetensors(bytearray(save(TENSORS, metadata)), "t")[1] == metadata | {
        "input_size": [3, 8, 8],
        "mean": 0.5,
    }


@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_header_that_lies_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="'t' is damaged or made to deceive: its header ") as caught:
        read_safetensors(bytearray(SAFETENSORS[name]), "t")
    assert caught.value.hint and caught.value.message.isprintable()


def test_every_truncation_is_refused() -> None:
    whole = save(TENSORS)
    for length in range(8, len(whole)):
        with pytest.raises(InputError, match="truncated"):
            read_safetensors(bytearray(whole[:length]), "t")


def test_the_hash_of_shards_is_the_one_that_a_shell_would_find(tmp_path: Path) -> None:
    index = shards(TENSORS, tmp_path)
    command = "LC_ALL=C sha256sum *.safetensors *.json | LC_ALL=C sort -k2 | sha256sum"
    run = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert read_checkpoint(index).sha256 == run.stdout.split()[0]
    assert read_checkpoint(tmp_path).sha256 == run.stdout.split()[0]


def test_a_changed_shard_changes_the_hash(tmp_path: Path) -> None:
    index = shards(TENSORS, tmp_path)
    before = read_index(bytearray(index.read_bytes()), index)
    shard = max(tmp_path.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    after = read_index(bytearray(index.read_bytes()), index)
    assert before.sha256 != after.sha256
    assert before.size == after.size == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_the_hash_of_one_file_is_the_files(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    expected = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert read_checkpoint(tmp_path).sha256 == expected


@pytest.mark.parametrize(
    "shard", ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", ".", "", "a\0b", "..\\a"]
)
def test_shards_outside_of_the_folder_are_refused(tmp_path: Path, shard: str) -> None:
    assert "lists a file outside of its folder" in refusal(with_index(tmp_path, {"fc.weight": shard}))


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    index = shards(TENSORS, tmp_path)
    max(tmp_path.glob("*.safetensors")).unlink()
    assert "lists a file that cannot be read: There is no file" in refusal(index)


def test_a_shard_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refusal(with_index(tmp_path, {"fc.weight": "pipe"}))


def test_an_index_that_lists_itself_is_refused(tmp_path: Path) -> None:
    index = with_index(tmp_path, {"fc.weight": "model.safetensors.index.json"})
    assert "lists 'model.safetensors.index.json', which is no safetensors file" in refusal(index)


def test_a_shard_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(saved(TENSORS))
    assert "lists 'a', which is no safetensors file" in refusal(with_index(tmp_path, {"fc.weight": "a"}))


@pytest.mark.parametrize("names", [["fc.weight"], ["fc.weight", "fc.bias", "step", "more"]])
def test_index_and_shards_must_have_the_same_tensors(tmp_path: Path, names: list[str]) -> None:
    save_file(TENSORS, tmp_path / "a")
    message = refusal(with_index(tmp_path, dict.fromkeys(names, "a")))
    assert message.startswith("'model.safetensors.index.json' and its shard 'a' disagree about where '")


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a")
    save_file({"fc.bias": torch.zeros(2)}, tmp_path / "b")
    message = refusal(with_index(tmp_path, {"fc.weight": "a", "step": "a", "fc.bias": "b"}))
    assert message.endswith("shard 'a' disagree about where 'fc.bias' is.")


@pytest.mark.parametrize("places", [{}, [], "a", {"fc.weight": 1}, None])
def test_an_index_without_files_is_refused(tmp_path: Path, places: object) -> None:
    assert "is a JSON file, but no index of weights" in refusal(with_index(tmp_path, places))


def test_an_index_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"weight_map": {"a": "b", "a": "c"}}')
    assert refusal(tmp_path / "index.json") == "'index.json' is no proper JSON."


def test_an_index_of_a_million_files_is_refused(tmp_path: Path) -> None:
    index = with_index(tmp_path, {f"{number}.weight": f"{number}" for number in range(1001)})
    assert refusal(index) == "'model.safetensors.index.json' lists 1,001 files; 1,000 are read."


def test_a_folder_of_two_files_asks_which(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors")
    save_file(TENSORS, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match=r"has 2 files \*\.safetensors"):
        index_in(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    assert index_in(tmp_path) is None
    assert refusal(tmp_path) == f"'{tmp_path}' is a folder."
