"""What the names in pickles of checkpoints stand for: plain data and stored tensors, never code.

A name that is not in the table is one that a checkpoint has no need of. None of the names is ever imported, so to list
one here allows nothing but to read past it.
"""

import struct
from collections.abc import Mapping
from itertools import product
from typing import Any

import torch

from compress.pipeline.teacher.readers.pickles import Constructor, Global, Inert, construct, inert, may_be_key
from compress.pipeline.teacher.readers.stored import Storage, StoredTensor, UnusableTensor, stored_array, stored_tensor

DTYPES: Mapping[str, torch.dtype] = {
    f"torch.{name}": dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)
}

_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
"""Source: https://docs.pytorch.org/docs/stable/storage.html, the legacy typed storages."""

_UNTYPED_SIZES = {
    "UntypedStorage": 1,
    "_UntypedStorage": 1,
    # of quantized numbers
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QInt32Storage": 4,
    "QUInt4x2Storage": 1,
    "QUInt2x4Storage": 1,
}

_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")

STORAGES: Mapping[str, tuple[torch.dtype | None, int]] = {
    f"{module}.{name}": (dtype, size)
    for module, (name, dtype, size) in product(
        _STORAGE_MODULES,
        [
            *((name, dtype, dtype.itemsize) for name, dtype in _STORAGE_DTYPES.items()),
            *((name, None, size) for name, size in _UNTYPED_SIZES.items()),
        ],
    )
}
"""Full name of a storage's class to the type of its numbers, where there is one, and the bytes that each takes."""

_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")

_BUILTIN_TYPES = (
    "object",
    "bool",
    "int",
    "float",
    "complex",
    "str",
    "bytes",
    "tuple",
    "list",
    "dict",
    "slice",
    "range",
)
_BUILTINS_OF_PYTHON_2 = ("long", "unicode", "xrange")

_DATA_CLASSES: Mapping[str, tuple[str, ...]] = {
    "builtins": (*_BUILTIN_TYPES, *_BUILTINS_OF_PYTHON_2),
    "argparse": ("Namespace",),
    "types": ("SimpleNamespace",),
    "typing": ("Any",),
    "datetime": ("datetime", "date", "time", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "uuid": ("UUID",),
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
    "easydict": ("EasyDict",),
    "addict.addict": ("Dict",),
    "yacs.config": ("CfgNode",),
    "pytorch_lightning.utilities.parsing": ("AttributeDict",),
    "lightning.pytorch.utilities.parsing": ("AttributeDict",),
    "lightning.fabric.utilities.data": ("AttributeDict",),
    "lightning_fabric.utilities.data": ("AttributeDict",),
    "omegaconf.base": ("ContainerMetadata", "Metadata"),
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.nodes": ("AnyNode", "BooleanNode", "FloatNode", "IntegerNode", "StringNode"),
    "numpy": ("ndarray",),
    "torch": ("Tensor", "device", "strided", "sparse_coo", "contiguous_format", "channels_last", "preserve_format"),
    "torch.serialization": ("_get_layout",),
}
"""Settings and statistics beside the weights, as training code keeps them; of no interest here."""

_QUANTIZATION_SCHEMES = (
    "per_tensor_affine",
    "per_tensor_symmetric",
    "per_channel_affine",
    "per_channel_symmetric",
    "per_channel_affine_float_qparams",
)

_OF_NO_INTEREST = [
    *(f"{module}.{name}" for module, names in _DATA_CLASSES.items() for name in names),
    *(f"torch.{name}" for name in _QUANTIZATION_SCHEMES),
    *(name.replace("Storage", "Tensor") for name in STORAGES),
    *STORAGES,
    *DTYPES,
]

_UNUSABLE = {
    "torch._utils._rebuild_qtensor": "quantized",
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse",
    "torch._utils._rebuild_meta_tensor_no_storage": "meta",
    "torch._utils._rebuild_nested_tensor": "nested",
}

_NUMPY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")

_NUMPY_TYPES: Mapping[str, tuple[torch.dtype, str]] = {
    # NumPy's code of a number's type, torch's name for it, and the code of Python's struct
    "f8": (torch.float64, "d"),
    "f4": (torch.float32, "f"),
    "f2": (torch.float16, "e"),
    "i8": (torch.int64, "q"),
    "i4": (torch.int32, "i"),
    "i2": (torch.int16, "h"),
    "i1": (torch.int8, "b"),
    "u1": (torch.uint8, "B"),
    "b1": (torch.bool, "?"),
}
"""Source: https://numpy.org/doc/stable/reference/arrays.interface.html, the type strings."""


class NumpyType(Inert):
    """The type of a NumPy array's or scalar's numbers."""

    def __init__(self, code: object, *_: object) -> None:
        self.code, self.big_endian = code if isinstance(code, str) else "", False

    def take_state(self, state: Any) -> None:
        """Version and byte order, then what only structured types have."""
        self.big_endian = state[1] == ">"


class NumpyArray(Inert):
    """A NumPy array; its numbers lie in the pickle itself."""

    def __init__(self, *_: object) -> None:
        self.stored: StoredTensor | UnusableTensor = UnusableTensor("an array of objects")

    def take_state(self, state: Any) -> None:
        """Version, shape, type, whether it is column-major, and the bytes."""
        _, shape, kind, column_major, raw = state
        if kind.code in _NUMPY_TYPES and isinstance(raw, str | bytes | bytearray):
            dtype = _NUMPY_TYPES[kind.code][0]
            storage = Storage(dtype, len(raw) // dtype.itemsize, lambda: memoryview(_as_bytes(raw)), kind.big_endian)
            self.stored = stored_array(storage, dtype, shape, column_major=column_major is True)


def _numpy_scalar(kind: NumpyType, raw: object = b"") -> object:
    """A plain number, where it is one."""
    if kind.code not in _NUMPY_TYPES or not isinstance(raw, str | bytes) or len(raw) > 8:
        return Inert()
    (number,) = struct.unpack((">" if kind.big_endian else "<") + _NUMPY_TYPES[kind.code][1], _as_bytes(raw))
    return number


def _as_bytes(raw: str | bytes | bytearray) -> bytearray:
    """Bytes, which older pickles hold as text in Latin-1."""
    return bytearray(raw.encode("latin-1") if isinstance(raw, str) else raw)


def _itself(value: object = None, *_: object) -> object:
    return value


def _dictionary(items: Any = None, *_: object) -> dict[Any, Any]:
    """An ordered one of Python 2 is given its pairs, which are used up, since a pickle may name one list many times."""
    pairs: dict[Any, Any] = {}
    if isinstance(items, list):
        items.reverse()
        while items:
            key, value = items.pop()
            pairs.update([(key, value)] if may_be_key(key) else [])
    return pairs


def _counter(counts: object = None, *_: object) -> object:
    return counts if isinstance(counts, dict) else {}


def _deque(items: object = None, *_: object) -> object:
    return items if isinstance(items, list) else []


def _reconstructed(kind: object, base: object, state: object = None, *_: object) -> object:
    """What protocols 0 and 1 do for an object without arguments; state are the items of a dictionary or a list."""
    return state if isinstance(state, dict | list) else Inert()


def _tensor(storage: Storage, offset: int, shape: Any, stride: Any, *more: Any) -> StoredTensor | UnusableTensor:
    """Further arguments are whether it takes gradients, hooks, and metadata of lazy operations.

    Source: _rebuild_tensor and _rebuild_tensor_v2 in torch/_utils.py.
    """
    if any(more[2:]):
        return UnusableTensor("lazily conjugated or negated")
    if storage.dtype is None:
        return UnusableTensor("quantized")
    return stored_tensor(storage, storage.dtype, offset, shape, stride)


def _tensor_of_bytes(
    storage: Storage, offset: int, shape: Any, stride: Any, _gradient: object, _hooks: object, dtype: Global, *_: object
) -> StoredTensor:
    """Source: _rebuild_tensor_v3 in torch/_utils.py, for types of numbers that have no storage of their own."""
    return stored_tensor(storage, DTYPES[dtype.name], offset, shape, stride)


def _tensor_with_attributes(function: Global, _kind: object, arguments: Any, *_: object) -> object:
    """Source: _rebuild_from_type_v2 in torch/_tensor.py; the attributes are dropped."""
    return construct(_REBUILDING[function.name], arguments)


def _unusable(kind: str) -> Constructor:
    return lambda *_: UnusableTensor(kind)


_REBUILDING: Mapping[str, Constructor] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_bytes,
    "torch._utils._rebuild_parameter": _itself,
    "torch._utils._rebuild_parameter_with_state": _itself,
    **{name: _unusable(kind) for name, kind in _UNUSABLE.items()},
}

CONSTRUCTORS: Mapping[str, Constructor] = {
    **dict.fromkeys(_OF_NO_INTEREST, inert),
    **_REBUILDING,
    **{f"{module}.scalar": _numpy_scalar for module in _NUMPY_MODULES},
    **{f"{module}._reconstruct": NumpyArray for module in _NUMPY_MODULES},
    "torch._tensor._rebuild_from_type_v2": _tensor_with_attributes,
    "torch.nn.parameter.Parameter": _itself,
    "torch.nn.parameter.Buffer": _itself,
    "torch.Size": _itself,
    "numpy.dtype": NumpyType,
    "_codecs.encode": _itself,
    "builtins.set": _itself,
    "builtins.frozenset": _itself,
    "builtins.bytearray": _itself,
    "collections.OrderedDict": _dictionary,
    "collections.defaultdict": _dictionary,
    "collections.Counter": _counter,
    "collections.deque": _deque,
    "copyreg._reconstructor": _reconstructed,
}
"""What a pickle may name, and what it is then given."""
