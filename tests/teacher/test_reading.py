import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from compress.pipeline.errors import CompressError, InputError, UnsafeInputError, UsageError
from compress.pipeline.teacher.reading import read_checkpoint
from tests.teacher.checkpoints import Weights, saved, tiny_weights


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.marker), "w")


def zip_of(*members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member in members:
            archive.writestr(member, b"content")
    return buffer.getvalue()


def refusal(content: bytes, folder: Path) -> InputError:
    """How a file of that content, named as a checkpoint whatever it is, is refused."""
    path = folder / "teacher.pt"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    assert caught.value.exit_code == 3
    return caught.value


def assert_equal(read: Weights, expected: Weights) -> None:
    expected = {name: tensor for name, tensor in expected.items() if not name.endswith("num_batches_tracked")}
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("legacy", [False, True])
def test_both_formats_of_torch_give_back_the_weights(tmp_path: Path, legacy: bool) -> None:
    weights = tiny_weights()
    checkpoint = read_checkpoint(saved(weights, tmp_path / "any.suffix", legacy=legacy))
    assert_equal(checkpoint.tensors, weights)
    assert checkpoint.format.endswith("a bare state_dict")


def test_safetensors_give_back_the_weights_and_the_metadata(tmp_path: Path) -> None:
    weights = tiny_weights()
    metadata = {"input_size": "[3, 8, 8]", "mean": "[0.1, 0.2, 0.3]", "std": "not JSON", "format": "pt"}
    save_file(weights, tmp_path / "teacher.bin", metadata)
    checkpoint = read_checkpoint(tmp_path / "teacher.bin")
    assert_equal(checkpoint.tensors, weights)
    assert checkpoint.metadata == {"input_size": [3, 8, 8], "mean": [0.1, 0.2, 0.3], "std": "not JSON"}
    assert checkpoint.format == "safetensors file, a bare state_dict"


def test_the_hash_is_the_one_of_the_file(tmp_path: Path) -> None:
    path = saved(tiny_weights(), tmp_path / "teacher.pt")
    assert read_checkpoint(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no file '.*nowhere\.pt'\.") as caught:
        read_checkpoint(tmp_path / "nowhere.pt")
    assert caught.value.exit_code == 2


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        read_checkpoint(tmp_path)


def test_a_path_through_a_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be read: Not a directory"):
        read_checkpoint(tmp_path / "file" / "teacher.pt")


def test_a_name_that_no_file_can_have_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: File name too long"):
        read_checkpoint(tmp_path / ("x" * 300))


def test_a_named_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "teacher.pt")
    with pytest.raises(InputError, match="is not a regular file"):
        read_checkpoint(tmp_path / "teacher.pt")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (zip_of("m/data.pkl", "m/constants.pkl"), "is a TorchScript archive"),
        (
            zip_of("m/archive_format", "m/models/model.json"),
            r"is a torch\.export program, whose reader may execute code",
        ),
        (zip_of("version", "serialized_exported_program.json"), r"is a torch\.export program"),
        (zip_of("m/.data/extern_modules", "m/data.pkl"), r"is a torch\.package archive"),
        (zip_of("config.json", "model.weights.h5"), "is a Keras model"),
        (zip_of("a.npy", "b.npy"), "is a NumPy archive"),
        (zip_of("photo.jpg"), "is a zip archive, but not one of PyTorch's"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file, as Keras writes them"),
        (b"\x08\x0a\x12\x07pytorch", "is an ONNX model"),
        (b"\x93NUMPY\x01\x00", "is a NumPy array"),
        (b"GGUF\x03\x00\x00\x00", "is a GGUF file"),
        (b"\x1c\x00\x00\x00TFL3", "is a TensorFlow Lite model"),
        (b"\x1f\x8b\x08\x00", "is compressed by gzip"),
        (bytes(257) + b"ustar\x0000", "is a tar archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        ("épreuve\n".encode() * 1000, "is a text file"),
        (bytes(range(255, 0, -1)), "is in no format that is known here"),
        ((10**6).to_bytes(8, "little") + b'{"a"', "is damaged or truncated"),
        (pickle.dumps({"a": 1}), r"is a Python pickle that torch\.save did not write"),
        (pickle.dumps({"a": 1}, 0), r"is a Python pickle that torch\.save did not write"),
    ],
)
def test_other_formats_are_recognised_by_content_and_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    error = refusal(content, tmp_path)
    assert error.message.startswith("'teacher.pt' ")
    with pytest.raises(InputError, match=reason):
        raise error
    assert "\n" not in error.message
    assert error.hint or "GGUF" in error.message


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_an_archive_with_two_members_of_one_name_is_refused(tmp_path: Path) -> None:
    assert "holds the same member twice" in refusal(zip_of("m/data.pkl", "m/data.pkl"), tmp_path).message


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickled_module_is_refused_with_its_imports_and_a_recipe(tmp_path: Path, legacy: bool) -> None:
    path = saved(torch.nn.Sequential(torch.nn.ReLU()), tmp_path / "teacher.pt", legacy=legacy)
    error = refusal(path.read_bytes(), tmp_path)
    assert isinstance(error, UnsafeInputError)
    assert "would execute code when loaded" in error.message
    assert "torch.nn.modules.container.Sequential" in error.message
    assert "torch.save({'state_dict': model.state_dict()}, 'weights.pt')" in error.hint


def test_the_recipe_for_a_pickled_module_leads_to_a_file_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = refusal(saved(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / "a").read_bytes(), tmp_path)
    recipe = "\n".join(line.strip() for line in error.hint.splitlines()[1:])
    exec(recipe, {"torch": torch})  # noqa: S102  the recipe is what is tested
    assert read_checkpoint(Path("weights.pt")).tensors.keys() == {"0.weight", "0.bias"}


@pytest.mark.parametrize("form", ["torch zip", "torch legacy", "pickle"])
def test_a_hostile_pickle_is_refused_and_nothing_of_it_runs(tmp_path: Path, form: str) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "hostile.pt"
    content = {"state_dict": {"weight": torch.zeros(1)}, "extra": Canary(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        saved(content, path, legacy=form == "torch legacy")
    error = refusal(path.read_bytes(), tmp_path)
    assert isinstance(error, UnsafeInputError)
    assert "open" in error.message and "checkpoint['state_dict']" in error.hint
    assert not marker.exists()


def test_the_canary_would_have_shown_an_execution(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Canary(tmp_path / "marker"))).close()
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("form", ["torch zip", "torch legacy", "safetensors"])
def test_a_truncated_checkpoint_is_refused_with_its_reason(tmp_path: Path, form: str) -> None:
    path = tmp_path / "whole"
    if form == "safetensors":
        save_file(tiny_weights(), path)
    else:
        saved(tiny_weights(), path, legacy=form == "torch legacy")
    whole = path.read_bytes()
    for length in range(30, len(whole), len(whole) // 20):
        assert "damaged or truncated" in refusal(whole[:length], tmp_path).message


@pytest.mark.filterwarnings("ignore::UserWarning")  # whatever the reader thinks of damaged bytes
def test_damaged_bytes_never_end_in_another_error(tmp_path: Path) -> None:
    whole = saved({"state_dict": tiny_weights()}, tmp_path / "whole").read_bytes()
    path = tmp_path / "damaged"
    refused = 0
    for position in range(0, len(whole), len(whole) // 150):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x41]) + whole[position + 1 :])
        try:
            read_checkpoint(path)
        except CompressError as error:
            refused += error.exit_code == 3
    assert refused > 0


def test_a_tensor_that_declares_a_terabyte_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    saved({"weight": torch.zeros(1).expand(2**40)}, tmp_path / "bomb")
    error = refusal((tmp_path / "bomb").read_bytes(), tmp_path)
    assert "declares 4,398,046,511,104 bytes" in error.message  # 4 bytes x 2**40


def test_an_archive_that_declares_more_than_its_size_allows_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m/data.pkl", b"content")
        archive.infolist()[0].file_size = 2**33
    assert "declares 8,589,934,592 bytes" in refusal(buffer.getvalue(), tmp_path).message


def test_names_from_a_hostile_file_reach_the_terminal_without_control_characters(tmp_path: Path) -> None:
    saved({"\x1b[2Jweight" + "x" * 1000: torch.tensor([float("nan")])}, tmp_path / "hostile")
    message = refusal((tmp_path / "hostile").read_bytes(), tmp_path).message
    assert message.isprintable() and "?[2Jweight" in message and len(message) < 300


def test_safetensors_of_a_number_type_that_torch_lacks_are_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "X8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    assert "is damaged" in refusal(len(header).to_bytes(8, "little") + header + b"\0", tmp_path).message
