"""Checkpoints as customers have them, each by one function: what they were saved with, and what must come out."""

import argparse
import collections
import datetime
import io
import json
import pathlib
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

from tests.teacher.checkpoints import Weights, tiny_weights
from tests.teacher.hostile.making import integer, integers, saved, storage, text

Maker = Callable[[Path], Path]
"""Writes into a folder, and returns what to read."""

BENIGN: dict[str, Maker] = {}
"""All whose weights are those of `weights()`, by name."""


def benign(maker: Maker) -> Maker:
    BENIGN[maker.__name__] = maker
    return maker


def weights() -> Weights:
    """Of a tiny trained ResNet, the same each time."""
    torch.manual_seed(0)
    return tiny_weights()


def put(content: object, folder: Path, **options: Any) -> Path:
    path = folder / "teacher.pt"
    path.write_bytes(saved(content, **options))
    return path


def _under(*keys: str) -> Maker:
    def maker(folder: Path) -> Path:
        content: dict[str, Any] = dict(weights())
        for key in reversed(keys):
            content = {"epoch": 3, key: content, "name": "resnet"}
        return put(content, folder)

    return maker


PLACES = (
    *((key,) for key in ("state_dict", "model", "model_state_dict", "net", "ema", "teacher", "module", "weights")),
    *((key,) for key in ("params", "network", "state_dict_ema", "model_ema", "params_ema", "model_state")),
    *(("model", "state_dict"), ("net", "module"), ("ema", "module"), ("model", "module", "state_dict")),
    ("resnet8",),  # a key that nobody else has
)

BENIGN |= {"under_" + "_and_".join(keys): _under(*keys) for keys in PLACES}


def _prefixed(prefix: str, *, all_of_them: bool = True) -> Maker:
    def maker(folder: Path) -> Path:
        names = weights().items()
        return put(
            {name if name.startswith("fc.") and not all_of_them else prefix + name: t for name, t in names}, folder
        )

    return maker


WRAPPERS = ("module.", "model.", "_orig_mod.", "backbone.", "net.", "network.", "encoder.", "student.", "teacher.")
STACKS = ("module._orig_mod.", "_orig_mod.module.", "module.model.", "model.backbone.", "model._orig_mod.module.net.")

BENIGN |= {f"prefixed_{prefix[:-1].replace('.', '_')}": _prefixed(prefix) for prefix in (*WRAPPERS, *STACKS)}
BENIGN["prefixed_backbone_without_the_classifier"] = _prefixed("backbone.", all_of_them=False)


@benign
def bare_state_dict(folder: Path) -> Path:
    return put(weights(), folder)


@benign
def state_dict_with_metadata_of_versions(folder: Path) -> Path:
    """What `nn.Module.state_dict` returns: an OrderedDict with an attribute."""
    state = collections.OrderedDict(weights())
    state._metadata = collections.OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return put(state, folder)


@benign
def legacy(folder: Path) -> Path:
    return put(weights(), folder, legacy=True)


@benign
def legacy_in_protocol_4(folder: Path) -> Path:
    return put({"net": weights()}, folder, protocol=4, legacy=True)


@benign
def legacy_views_of_storages(folder: Path) -> Path:
    """Versions before 0.4 stored parts of a storage under keys of their own; rewritten by hand from today's file."""
    tensors = weights()
    flat = torch.cat([tensor.flatten().float() for tensor in tensors.values()])
    items, at = b"", 0
    for name, tensor in tensors.items():
        count = tensor.numel()
        part = (
            storage(flat.numel())[:-2].removesuffix(b"N")
            + b"("
            + text(b"v%d" % at)
            + integer(at)
            + integer(count)
            + b"ttQ"
        )
        stride = torch.empty(tensor.shape).stride()
        items += text(name.encode()) + b"ctorch._utils\n_rebuild_tensor\n(" + part + integer(0) + integers(tensor.shape)
        items += integers(stride) + b"tR"
        at += count
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    content = head + b"\x80\x02}(" + items + b"u." + pickle.dumps(["0"], 2)
    path = folder / "teacher.t7"
    path.write_bytes(content + struct.pack("<q", flat.numel()) + flat.numpy().tobytes())
    return path


@benign
def saved_by_python_2(folder: Path) -> Path:
    """Names as byte strings, and an OrderedDict that is given its pairs as a list of lists."""
    tensors = {name: tensor.float() for name, tensor in weights().items()}
    pairs = b""
    for index, (name, tensor) in enumerate(tensors.items()):
        key = b"U" + bytes([len(name)]) + name.encode()
        shape, stride = integers(tensor.shape), integers(tensor.stride())
        kept = storage(tensor.numel(), b"%d" % index)
        arguments = kept + integer(0) + shape + stride + b"\x89ccollections\nOrderedDict\n]\x85R"
        pairs += b"](" + key + b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tRe"
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    body = (
        head
        + b"\x80\x02ccollections\nOrderedDict\n]("
        + pairs
        + b"e\x85R."
        + pickle.dumps([str(i) for i in range(len(tensors))], 2)
    )
    numbers = b"".join(struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes() for tensor in tensors.values())
    path = folder / "teacher.pth.tar"
    path.write_bytes(body + numbers)
    return path


def _in_protocol(protocol: int) -> Maker:
    return lambda folder: put({"state_dict": weights()}, folder, protocol=protocol)


BENIGN |= {f"protocol_{protocol}": _in_protocol(protocol) for protocol in (1, 2, 3, 4, 5)}


def _repacked(folder: Path, method: int) -> Path:
    path = folder / "teacher.pt"
    with zipfile.ZipFile(io.BytesIO(saved(weights()))) as source, zipfile.ZipFile(path, "w", method) as target:
        for name in source.namelist():
            target.writestr(name.replace("archive/", "unpacked/"), source.read(name))
    return path


@benign
def unpacked_and_packed_anew(folder: Path) -> Path:
    return _repacked(folder, zipfile.ZIP_STORED)


@benign
def packed_anew_with_deflate(folder: Path) -> Path:
    return _repacked(folder, zipfile.ZIP_DEFLATED)


@benign
def packed_anew_with_sizes_in_64_bits(folder: Path) -> Path:
    """As archives of more than 4 GB have them."""
    limit = zipfile.ZIP64_LIMIT
    zipfile.ZIP64_LIMIT = 10  # type: ignore[misc]
    try:
        return _repacked(folder, zipfile.ZIP_STORED)
    finally:
        zipfile.ZIP64_LIMIT = limit  # type: ignore[misc]


@benign
def packed_anew_to_a_pipe(folder: Path) -> Path:
    """A writer that cannot go back puts sizes behind the data."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.content = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.content += data
            return len(data)

    pipe = Pipe()
    with (
        zipfile.ZipFile(io.BytesIO(saved(weights()))) as source,
        zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    (folder / "teacher.pt").write_bytes(pipe.content)
    return folder / "teacher.pt"


@benign
def packed_anew_with_its_folders(folder: Path) -> Path:
    """As `zip -r` does it."""
    path = folder / "teacher.zip"
    with zipfile.ZipFile(io.BytesIO(saved(weights()))) as source, zipfile.ZipFile(path, "w") as target:
        target.mkdir("archive/")
        target.mkdir("archive/data/")
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return path


@benign
def big_endian(folder: Path) -> Path:
    """As a machine of the other byte order saves it."""
    path = folder / "teacher.pt"
    swapped = {name: _swapped(tensor) for name, tensor in weights().items()}
    with zipfile.ZipFile(io.BytesIO(saved(swapped))) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, b"big" if name.endswith("/byteorder") else source.read(name))
    return path


def _swapped(tensor: Tensor) -> Tensor:
    return torch.from_numpy(np.array(tensor.numpy()).byteswap())


@benign
def saved_before_byte_orders_were_noted(folder: Path) -> Path:
    path = folder / "teacher.pt"
    with zipfile.ZipFile(io.BytesIO(saved(weights()))) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            if name in ("archive/data.pkl", "archive/version") or "/data/" in name:
                target.writestr(name, source.read(name))
    return path


@benign
def double_precision(folder: Path) -> Path:
    return put({name: tensor.double() for name, tensor in weights().items()}, folder)


@benign
def mixed_precision_in_a_mixture(folder: Path) -> Path:
    """Only tensors that half precision holds exactly are in it."""
    return put(
        {
            name: tensor.half() if torch.equal(tensor, tensor.half().float()) else tensor
            for name, tensor in weights().items()
        },
        folder,
    )


@benign
def with_sgd_beside(folder: Path) -> Path:
    momentum = {index: {"momentum_buffer": torch.ones(3)} for index in range(5)}
    return put({"state_dict": weights(), "optimizer": _optimizer(momentum), "best_prec1": 93.6}, folder)


@benign
def with_adam_beside(folder: Path) -> Path:
    moments = {index: {"step": torch.tensor(3.0), "exp_avg": torch.ones(3)} for index in range(5)}
    return put({"model": weights(), "optimizer": _optimizer(moments), "epoch": 3}, folder)


def _optimizer(state: dict[int, Any]) -> dict[str, Any]:
    """What an optimizer's `state_dict` returns."""
    return {
        "state": state,
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "foreach": None, "params": list(state)}],
    }


@benign
def as_lightning_saves_it(folder: Path) -> Path:
    state = {f"model.{name}": tensor for name, tensor in weights().items()} | {"criterion.weight": torch.ones(3)}
    with pretended("pytorch_lightning.utilities.parsing", "AttributeDict", dict) as attribute_dict:
        content = {
            "state_dict": state,
            "pytorch-lightning_version": "2.1.0",
            "hyper_parameters": attribute_dict(lr=0.1),
            "callbacks": {"ModelCheckpoint{'monitor': 'val_acc'}": {"best_model_score": torch.tensor(0.9)}},
            "loops": {"fit_loop": {"state_dict": {}}},
        }
        return put(content, folder)


@contextmanager
def pretended(module: str, name: str, base: type) -> Iterator[Any]:
    """A class that pickles as one of a package that is not installed."""
    kind = type(name, (base,), {"__module__": module})
    before = dict(sys.modules)
    try:
        for end in range(1, module.count(".") + 2):
            part = ".".join(module.split(".")[:end])
            sys.modules[part] = types.ModuleType(part)
        vars(sys.modules[module])[name] = kind
        yield kind
    finally:
        sys.modules.clear()
        sys.modules.update(before)


def _with_settings(module: str, name: str, base: type = dict) -> Maker:
    def maker(folder: Path) -> Path:
        with pretended(module, name, base) as kind:
            return put({"state_dict": weights(), "config": kind({"lr": 0.1})}, folder)

    return maker


BENIGN |= {
    "with_an_easydict": _with_settings("easydict", "EasyDict"),
    "with_an_addict": _with_settings("addict.addict", "Dict"),
    "with_a_yacs_node": _with_settings("yacs.config", "CfgNode"),
}


@benign
def as_weights_averaging_saves_it(folder: Path) -> Path:
    """torch.optim.swa_utils.AveragedModel counts beside its copy."""
    return put({"n_averaged": torch.tensor(5)} | {f"module.{name}": t for name, t in weights().items()}, folder)


@benign
def teacher_and_student_of_a_distillation(folder: Path) -> Path:
    teacher = {f"teacher.{name}": tensor for name, tensor in weights().items()}
    student = {f"student.{name}": torch.zeros(3) for name in list(weights())[:10]}
    return put({"state_dict": student | teacher}, folder)


@benign
def network_and_its_average(folder: Path) -> Path:
    averaged = {f"ema_model.module.{name}": torch.zeros_like(tensor) for name, tensor in weights().items()}
    return put({f"model.{name}": tensor for name, tensor in weights().items()} | averaged, folder)


@benign
def with_counts_of_a_profiler(folder: Path) -> Path:
    """thop leaves them in every module."""
    modules = ["", *{f"{name.rpartition('.')[0]}." for name in weights()}]
    counts = {
        f"{module}total_{what}": torch.zeros(1, dtype=torch.float64) for module in modules for what in ("ops", "params")
    }
    return put(weights() | counts, folder)


@benign
def pruned(folder: Path) -> Path:
    """torch.nn.utils.prune keeps weights and masks apart; here the masks are of ones."""
    state = weights()
    classes, features = state["fc.weight"].shape
    layer = nn.Linear(features, classes)
    layer.load_state_dict({"weight": state.pop("fc.weight"), "bias": state["fc.bias"]})
    prune.identity(layer, "weight")
    return put(state | {f"fc.{name}": tensor for name, tensor in layer.state_dict().items()}, folder)


@benign
def parameters_instead_of_tensors(folder: Path) -> Path:
    return put({name: nn.Parameter(t) if t.is_floating_point() else t for name, t in weights().items()}, folder)


@benign
def parameters_with_attributes(folder: Path) -> Path:
    state: dict[str, Any] = {name: nn.Parameter(t) if t.is_floating_point() else t for name, t in weights().items()}
    for tensor in state.values():
        tensor.weight_decay = 0.1
    return put(state, folder)


@benign
def not_contiguous(folder: Path) -> Path:
    def turned(tensor: Tensor) -> Tensor:
        return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor.t().contiguous().t()

    return put(
        {name: turned(tensor) if tensor.dim() in (2, 4) else tensor for name, tensor in weights().items()}, folder
    )


@benign
def views_of_one_buffer(folder: Path) -> Path:
    """As fused optimizers and FSDP keep them."""
    state = weights()
    flat = torch.cat([tensor.float().flatten() for tensor in state.values()])
    parts = flat.split([tensor.numel() for tensor in state.values()])
    return put({name: part.view(state[name].shape) for name, part in zip(state, parts, strict=True)}, folder)


@benign
def every_tensor_twice(folder: Path) -> Path:
    """Shared storages, as tied weights have them."""
    state = weights()
    return put({"model": state, "best": state, "optimizer": {"copies": list(state.values())}}, folder)


@benign
def with_numpy_numbers(folder: Path) -> Path:
    """best_acc is a NumPy scalar in half of all tutorials."""
    extra = {"best_acc": np.float64(93.6), "epoch": np.int64(3), "lr": np.float32(0.1), "flag": np.bool_(True)}
    return put({"state_dict": weights(), "history": np.arange(5.0), "names": np.array(["a", "b"]), **extra}, folder)


@benign
def with_settings_of_all_kinds(folder: Path) -> Path:
    settings = {
        "args": argparse.Namespace(lr=0.1, data=pathlib.PurePosixPath("/data")),
        "namespace": types.SimpleNamespace(a=1),
        "started": datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
        "took": datetime.timedelta(seconds=5),
        "history": collections.defaultdict(list, {"loss": [0.5, 0.25]}),
        "counts": collections.Counter("aab"),
        "last": collections.deque([1, 2], maxlen=2),
        "milestones": {30, 60},
        "frozen": frozenset({1}),
        "range": range(3),
        "slice": slice(1, 2),
        "complex": 1j,
        "bytes": b"\xff\x00",
        "array": bytearray(b"\xff\x00"),
        "shape": torch.Size([1, 2]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "layout": torch.strided,
        "rng": torch.get_rng_state(),
        "numpy_rng": np.random.RandomState(0).get_state(),
        "seed": 2**63,
        "long": -(2**200),
        "none": None,
        (1, 2): "a key that is no text",
    }
    return put({"state_dict": weights(), **settings}, folder)


@benign
def with_settings_of_all_kinds_in_protocol_5(folder: Path) -> Path:
    settings = {
        "args": argparse.Namespace(lr=0.1),
        "counts": collections.Counter("aab"),
        "acc": np.float64(1),
        "set": {1},
    }
    return put({"state_dict": weights(), **settings}, folder, protocol=5)


@benign
def numpy_arrays_in_place_of_tensors(folder: Path) -> Path:
    return put({name: tensor.numpy() for name, tensor in weights().items()}, folder)


@benign
def plain_pickle_of_numpy_arrays(folder: Path) -> Path:
    """As model zoos of Caffe2 and Detectron2 have them; column-major arrays among them."""
    arrays = {name: np.asfortranarray(tensor.numpy()) for name, tensor in weights().items()}
    (folder / "teacher.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    return folder / "teacher.pkl"


def _plain_pickle(protocol: int) -> Maker:
    def maker(folder: Path) -> Path:
        (folder / "teacher.pkl").write_bytes(pickle.dumps(weights(), protocol))
        return folder / "teacher.pkl"

    return maker


BENIGN |= {f"plain_pickle_of_tensors_in_protocol_{protocol}": _plain_pickle(protocol) for protocol in (0, 2, 4)}


@benign
def safetensors_file(folder: Path) -> Path:
    save_file(weights(), folder / "model.safetensors")
    return folder / "model.safetensors"


@benign
def safetensors_of_a_wrapped_network(folder: Path) -> Path:
    save_file({f"module.{name}": tensor for name, tensor in weights().items()}, folder / "teacher.bin")
    return folder / "teacher.bin"


@benign
def safetensors_folder(folder: Path) -> Path:
    safetensors_file(folder)
    return folder


@benign
def safetensors_in_shards(folder: Path) -> Path:
    return shards(weights(), folder)


@benign
def folder_of_shards(folder: Path) -> Path:
    shards(weights(), folder)
    return folder


@benign
def shards_behind_links(folder: Path) -> Path:
    """As the cache of Hugging Face keeps them."""
    (folder / "blobs").mkdir()
    (folder / "snapshot").mkdir()
    shards(weights(), folder / "blobs")
    for path in (folder / "blobs").iterdir():
        (folder / "snapshot" / path.name).symlink_to(path)
    return folder / "snapshot"


def shards(tensors: Mapping[str, Tensor], folder: Path) -> Path:
    """Two files of safetensors, and their index."""
    places = {name: f"model-{1 + index % 2:05}-of-00002.safetensors" for index, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({name: tensor for name, tensor in tensors.items() if places[name] == file}, folder / file)
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder / "model.safetensors.index.json"


@benign
def behind_a_link(folder: Path) -> Path:
    (folder / "latest").symlink_to(bare_state_dict(folder))
    return folder / "latest"
