"""Files of the other formats: safetensors, torch's old one, and those that are never read."""

import gzip
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import torch

from tests.teacher.hostile.making import Canary, Maker, integer, integers, into, saved, storage, text
from tests.teacher.zips import Entry, written

FILES: dict[str, Maker] = {}

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def safetensors(header: Any, content: bytes = bytes(16), *, length: int | None = None) -> bytes:
    """A safetensors file whose header may be anything."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def entry(shape: list[Any], start: int = 0, end: int = 16, dtype: str = "F32", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end], **more}


SAFETENSORS: dict[str, bytes] = {
    # Source: the abuse files of safetensors' repository, and its audit of 2023.
    "header_beyond_the_file": safetensors({"w": entry([2, 2])}, length=10_000),
    "header_of_terabytes": safetensors({"w": entry([2, 2])}, length=2**40),
    "tensors_that_overlap": safetensors({"v": entry([2, 2]), "w": entry([2], 8, 16)}),
    "hole_between_tensors": safetensors({"v": entry([1], 0, 4), "w": entry([1], 12, 16)}),
    "hole_at_the_end": safetensors({"v": entry([1], 0, 4)}),
    "hole_at_the_start": safetensors({"v": entry([1], 12, 16)}),
    "offsets_below_zero": safetensors({"w": entry([2, 2], -16, 0)}),
    "offsets_backwards": safetensors({"w": entry([2, 2], 16, 0)}),
    "offsets_behind_the_end": safetensors({"w": entry([4, 2], 0, 32)}),
    "offsets_of_three": safetensors({"w": entry([2, 2]) | {"data_offsets": [0, 8, 16]}}),
    "offsets_that_are_no_integers": safetensors({"w": entry([2, 2]) | {"data_offsets": [0.0, 16.0]}}),
    "shape_below_zero": safetensors({"w": entry([-2, -2])}),
    "shape_that_overflows": safetensors({"w": entry([2**33, 2**31 + 1])}),
    "shape_that_is_vast_and_empty": safetensors({"v": entry([2, 2]), "w": entry([2**40, 2**40, 0], 16, 16)}),
    "shape_of_truth_values": safetensors({"w": entry([True, 4])}),
    "shape_that_is_a_text": safetensors({"w": entry([2, 2]) | {"shape": "22"}}),
    "shape_of_a_thousand_dimensions": safetensors({"w": entry([1] * 1000, 0, 4)}, bytes(4)),
    "another_size_than_the_shape": safetensors({"w": entry([2, 3])}),
    "type_of_numbers_unknown": safetensors({"w": entry([2, 2], dtype="F37")}),
    "type_of_numbers_that_is_a_list": safetensors({"w": entry([2, 2]) | {"dtype": ["F32"]}}),
    "tensor_twice": safetensors(b'{"w":%b,"w":%b}' % ((json.dumps(entry([2, 2])).encode(),) * 2)),
    "entry_with_more_to_say": safetensors({"w": entry([2, 2], code="import os")}),
    "entry_that_is_a_text": safetensors({"w": "F32"}),
    "metadata_that_are_no_text": safetensors({"__metadata__": {"mean": [1]}, "w": entry([2, 2])}),
    "header_that_is_no_json": safetensors(b"{'w': 1}"),
    "header_that_is_nested_deeply": safetensors(b'{"a":' * 100_000),
    "header_that_is_no_text": safetensors(b"{\xff\xfe}"),
    "header_with_a_number_of_a_million_digits": safetensors(b'{"w":' + b"9" * 1_000_000 + b"}"),
    "header_of_spaces": safetensors(b"{" + b" " * 30_000_000 + b"}", b""),
    "bytes_behind_the_numbers": safetensors({"w": entry([2, 2])}, bytes(17)),
    "name_of_a_megabyte": safetensors({"w" * 1_000_000: entry([2, 2])}),
    "no_numbers_at_all": safetensors({"w": entry([2, 2])}, b""),
}


def _always(content: bytes) -> Maker:
    return lambda _: content


FILES |= {f"safetensors_{name}": _always(content) for name, content in SAFETENSORS.items()}


@into(FILES)
def zip_in_a_safetensors_file(marker: Path) -> bytes:
    """A zip archive as a tensor's numbers: what looks from the end finds it. Source: the safetensors audit of 2023."""
    inside = written([Entry("archive/data.pkl", pickle.dumps(Canary(marker)))])
    return safetensors({"w": entry([len(inside)], 0, len(inside), "U8")}, inside)


def legacy(root: bytes, keys: object, content: bytes = b"") -> bytes:
    """A file of the format before 1.6 around any pickle."""
    head = b"".join(pickle.dumps(value, 2) for value in (MAGIC, PROTOCOL, {"little_endian": True}))
    return head + root + pickle.dumps(keys, 2) + content


def legacy_weights() -> tuple[bytes, bytes]:
    """Five pickles and the numbers of one storage, of an honest file."""
    whole = saved({"fc.weight": torch.arange(4.0)}, legacy=True)
    return whole[: -8 - 16], whole[-8 - 16 :]


@into(FILES)
def legacy_of_another_protocol(_: Path) -> bytes:
    """A version that there never was."""
    return pickle.dumps(MAGIC, 2) + pickle.dumps(7, 2) + pickle.dumps({}, 2) * 3


@into(FILES)
def legacy_with_a_negative_count(_: Path) -> bytes:
    """A storage of minus one number."""
    pickles, numbers = legacy_weights()
    return pickles + struct.pack("<q", -1) + numbers[8:]


@into(FILES)
def legacy_with_a_vast_count(_: Path) -> bytes:
    """A storage of 2^60 numbers."""
    pickles, numbers = legacy_weights()
    return pickles + struct.pack("<q", 2**60) + numbers[8:]


@into(FILES)
def legacy_cut_short(_: Path) -> bytes:
    """A download that ended early."""
    pickles, numbers = legacy_weights()
    return pickles + numbers[:-1]


@into(FILES)
def legacy_with_bytes_behind(_: Path) -> bytes:
    """A file that goes on."""
    pickles, numbers = legacy_weights()
    return pickles + numbers + b"more"


@into(FILES)
def legacy_with_a_storage_twice(_: Path) -> bytes:
    """One key, two sets of numbers."""
    whole = saved({"fc.weight": torch.arange(4.0)}, legacy=True)
    key = whole[whole.index(b"X", whole.rindex(b"]q")) :]
    length = 5 + int.from_bytes(key[1:5], "little")
    pickles, numbers = legacy_weights()
    return pickles.removesuffix(b"a.") + b"a" + key[:length] + b"a." + numbers * 2


@into(FILES)
def legacy_without_its_storages(_: Path) -> bytes:
    """Tensors without numbers."""
    pickles, _numbers = legacy_weights()
    return pickles[: pickles.rindex(b"\x80\x02")] + pickle.dumps([], 2)


@into(FILES)
def legacy_with_keys_that_are_none(_: Path) -> bytes:
    """A number where the list of storages should be."""
    return legacy(pickle.dumps({"a": 1}, 2), 7)


@into(FILES)
def legacy_with_a_key_of_nested_tuples(_: Path) -> bytes:
    """A name in the list of storages that ends a process which hashes it."""
    head = b"".join(pickle.dumps(value, 2) for value in (MAGIC, PROTOCOL, {}, {"a": 1}))
    return head + b"\x80\x02])" + b"\x85" * 200_000 + b"a."


@into(FILES)
def legacy_with_a_view_of_half_a_number(_: Path) -> bytes:
    """Part of a storage, from 0.5 on."""
    part = storage(4).removesuffix(b"tQ") + b"(" + text(b"v") + b"G" + struct.pack(">d", 0.5) + integer(2) + b"ttQ"
    arguments = part + integer(0) + integers([2]) + integers([1])
    root = b"\x80\x02}" + text(b"fc.weight") + b"ctorch._utils\n_rebuild_tensor\n(" + arguments + b"tRs."
    return legacy(root, ["0"], struct.pack("<q", 4) + bytes(16))


@into(FILES)
def magic_and_nothing_else(_: Path) -> bytes:
    """The first pickle of five."""
    return pickle.dumps(MAGIC, 2)


@into(FILES)
def nothing(_: Path) -> bytes:
    """An empty file."""
    return b""


@into(FILES)
def compressed(marker: Path) -> bytes:
    """A pickle in gzip. Source: loaders that look through compression."""
    return gzip.compress(pickle.dumps(Canary(marker)))


@into(FILES)
def keras_model(_: Path) -> bytes:
    """A Lambda layer holds code. Source: CVE-2024-3660."""
    return written([Entry("config.json", b'{"class_name": "Lambda"}'), Entry("model.weights.h5", b"\x89HDF")])


@into(FILES)
def gguf_of_2_to_the_42_blocks(_: Path) -> bytes:
    """A count that readers allocate. Source: llama.cpp #18674."""
    return b"GGUF" + struct.pack("<IQQ", 3, 2**42, 2**42)


@into(FILES)
def tensorrt_engine(_: Path) -> bytes:
    """A program, with a library inside if its author likes."""
    return b"ftrt" + bytes(100)


@into(FILES)
def yaml_with_an_object(marker: Path) -> bytes:
    """A text that YAML readers run."""
    return f"!!python/object/apply:os.system ['touch {marker}']\n".encode()


@into(FILES)
def terminal_commands(_: Path) -> bytes:
    """Names that would move the cursor, ring the bell and turn the writing around."""
    names = {f"\x1b[2J\x07\u202e{index}\r\n": 1 for index in range(3)}
    return saved(names)


@into(FILES)
def terminal_commands_in_an_import(_: Path) -> bytes:
    """Likewise, as the name of a class."""
    return b"\x80\x02c\x1b[2J\x07os\nsys\x1b[31mtem\n)R."


@into(FILES)
def archive_of_numpy_objects(marker: Path) -> bytes:
    """An .npz whose array is a pickle. Source: CVE-2019-6446."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + pickle.dumps([Canary(marker)])
    return written([Entry("weights.npy", array)])


def _tensors(**tensors: torch.Tensor) -> Maker:
    return lambda _: saved(tensors)


FILES |= {
    # Weights that are none.
    "weights_of_nan": _tensors(weight=torch.full((2, 2), float("nan"))),
    "weights_of_infinity": _tensors(weight=torch.full((2, 2), float("inf"))),
    "weights_beyond_float32": _tensors(weight=torch.full((2, 2), 1e300, dtype=torch.float64)),
    "variance_below_zero": _tensors(running_var=torch.full((2,), -1.0)),
    "weights_of_integers": _tensors(weight=torch.ones(2, 2, dtype=torch.int8)),
    "weights_of_complex_numbers": _tensors(weight=torch.ones(2, 2, dtype=torch.complex64)),
    "weights_of_float8": _tensors(weight=torch.ones(2, 2).to(torch.float8_e4m3fn)),
    "weights_on_no_device": _tensors(weight=torch.ones(2, 2, device="meta")),
    "weights_that_are_sparse": _tensors(weight=torch.ones(2, 2).to_sparse()),
    "weights_that_are_conjugated": _tensors(weight=torch.ones(2, 2, dtype=torch.complex64).conj()),
    "weights_of_no_numbers": _tensors(weight=torch.ones(0, 3)),
    "one_tensor": lambda _: saved(torch.ones(2, 2)),
    "a_list_of_tensors": lambda _: saved([torch.ones(2, 2)]),
}
