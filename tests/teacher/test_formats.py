import io
import json
import pickle
import tarfile

import pytest
import torch
from safetensors.torch import save

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.readers.formats import printable, recognise_format, root_of
from tests.teacher.hostile.making import saved
from tests.teacher.zips import Entry, written

WEIGHTS = {"fc.weight": torch.ones(2, 2)}


def zip_of(*members: str) -> bytes:
    return written([Entry(member, b"content") for member in members])


def tar_of(*members: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in members:
            archive.addfile(tarfile.TarInfo(member))
    return buffer.getvalue()


RECOGNISED = {
    "state_dict": (saved(WEIGHTS), "torch zip"),
    "protocol 5": (saved(WEIGHTS, 5), "torch zip"),
    "legacy": (saved(WEIGHTS, legacy=True), "torch legacy"),
    "legacy, protocol 4": (saved(WEIGHTS, 4, legacy=True), "torch legacy"),
    "legacy, protocol 0": (pickle.dumps(0x1950A86A20F9469CFC6C, 0), "torch legacy"),
    "safetensors": (save(WEIGHTS), "safetensors"),
    "pickle": (pickle.dumps({"a": 1}), "pickle"),
    "pickle, protocol 0": (pickle.dumps({"a": 1}, 0), "pickle"),
    "traced": (zip_of("m/data.pkl", "m/constants.pkl", "m/code/a.py", "m/version"), "torchscript"),
    "for phones": (zip_of("m/data.pkl", "m/constants.pkl", "m/bytecode.pkl"), "torchscript"),
    "exported": (zip_of("m/archive_format", "m/models/model.json", "m/byteorder"), "torch export"),
    "exported, old": (zip_of("version", "serialized_exported_program.json", "extra_files/a"), "torch export"),
    "onnx": (b"\x08\x0a\x12\x07pytorch", "onnx"),
    "index": (b' \n{"metadata": {}, "weight_map": {}}', "safetensors index"),
}

REFUSED = [
    (b"", "is empty"),
    (zip_of("m/.data/extern_modules", "m/data.pkl"), r"is a torch\.package archive, which is code"),
    (zip_of("config.json", "model.weights.h5"), "is a Keras model"),
    (zip_of("a.npy", "b.npy"), "is a NumPy archive"),
    (zip_of("photo.jpg"), "is a zip archive, but not one of PyTorch's"),
    (zip_of("data.pkl"), "is a zip archive, but not one of PyTorch's"),
    (zip_of("a/data.pkl", "b/data.pkl"), "is a zip archive of several folders"),
    (zip_of("m/data.pkl", "m/archive_format"), "is two files in one: it has the marks of torch export and torch zip"),
    (zip_of("m/constants.pkl", "m/archive_format"), "it has the marks of torch export and torchscript"),
    (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file, as Keras writes them"),
    (b"\x93NUMPY\x01\x00", "is a NumPy array"),
    (b"GGUF\x03\x00\x00\x00", "is a GGUF file"),
    (b"ftrt" + bytes(20), "is a TensorRT engine"),
    (b"\x1c\x00\x00\x00TFL3", "is a TensorFlow Lite model"),
    (b"\x1c\x00\x00\x00ET12", "is an ExecuTorch program"),
    (b"\x1f\x8b\x08\x00", "is compressed by gzip"),
    (tar_of("model.json"), "is a tar archive"),
    (tar_of("sys_info", "pickle", "storages", "tensors"), r"is a PyTorch checkpoint of before version 0\.1\.10"),
    (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    (b"<!DOCTYPE html><html>", "is a web page"),
    (json.dumps({"model_type": "resnet"}).encode(), "is a JSON file and not a checkpoint"),
    ("épreuve\n".encode() * 1000, "is a text file"),
    (bytes(range(255, 0, -1)), "is in no format that is known here"),
]


@pytest.mark.parametrize("name", RECOGNISED)
def test_formats_are_recognised_by_content(name: str) -> None:
    content, form = RECOGNISED[name]
    assert recognise_format(bytearray(content), "any.name") == form


@pytest.mark.parametrize(("content", "reason"), REFUSED)
def test_other_formats_are_named_and_refused(content: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        recognise_format(bytearray(content), "teacher.pt")
    assert caught.value.message.startswith("'teacher.pt' ") and caught.value.message.isprintable()
    assert caught.value.hint or "GGUF" in caught.value.message


@pytest.mark.parametrize(
    "name", [name for name, (_, form) in RECOGNISED.items() if form not in ("torch zip", "torchscript", "torch export")]
)
def test_no_format_may_end_as_another(name: str) -> None:
    content = bytearray(RECOGNISED[name][0] + saved(WEIGHTS))
    with pytest.raises(InputError, match=r"is two files in one: it begins as .+ and ends as a zip archive"):
        recognise_format(content, "teacher.pt")


def test_a_zip_that_is_a_tar_as_well_is_refused() -> None:
    inside = tar_of("data.pkl")[30 + len("m/data.pkl") :]
    with pytest.raises(InputError, match="two files in one: a zip archive and a tar archive"):
        recognise_format(bytearray(written([Entry("m/data.pkl", inside)])), "teacher.pt")


def test_the_root_is_the_one_folder_that_holds_all() -> None:
    assert root_of(frozenset({"m/data.pkl", "m/data/0"})) == "m"
    assert root_of(frozenset({"m/data.pkl", "n/data/0"})) == ""


def test_names_are_made_fit_for_a_terminal() -> None:
    assert printable("conv\x1b[2J\u202e\n") == "conv?[2J??"
    assert printable("x" * 101) == "x" * 100 + "..."
