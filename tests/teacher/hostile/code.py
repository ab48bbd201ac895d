"""Pickles that run code when they are loaded."""

import io
import pickle
import struct
import tarfile
from pathlib import Path

import torch

from tests.teacher.hostile.making import Canary, Maker, call, into, saved, text, torch_zip, weights_pickle
from tests.teacher.zips import Entry

FILES: dict[str, Maker] = {}

GADGETS = {
    # name: module, function, arguments; the canary's path stands for {}
    "os_system": ("os", "system", "touch {}"),
    "posix_system": ("posix", "system", "touch {}"),
    "nt_system": ("nt", "system", "touch {}"),
    "subprocess": ("subprocess", "getoutput", "touch {}"),
    "eval": ("builtins", "eval", "open('{}', 'w')"),
    "exec_of_python_2": ("__builtin__", "exec", "open('{}', 'w')"),
    "import": ("builtins", "__import__", "antigravity"),
    "getattr": ("builtins", "getattr", "{}", "upper"),
    "open": ("io", "open", "{}", "w"),
    "importlib": ("importlib", "import_module", "antigravity"),
    "runpy": ("runpy", "run_path", "{}"),
    "code": ("code", "interact", "{}"),
    "timeit": ("timeit", "timeit", "open('{}', 'w')"),
    "profiler": ("cProfile", "run", "open('{}', 'w')"),
    "debugger": ("bdb", "Bdb", "{}"),
    "shutil": ("shutil", "rmtree", "{}"),
    "ctypes": ("ctypes", "CDLL", "{}"),
    "network": ("urllib.request", "urlopen", "http://localhost/{}"),
    "pip": ("pip", "main", "install"),  # CVE-2025-1716
    "resolve_name": ("pkgutil", "resolve_name", "os:system"),
    "methodcaller": ("operator", "methodcaller", "system"),
    "crackfortran": ("numpy.f2py.crackfortran", "getlincoef", "open('{}', 'w')", ""),  # GHSA-955r-x9j8-7rhh
    "torch_load": ("torch.serialization", "load", "{}"),
    "torch_hub": ("torch.hub", "load", "{}"),
    "submodule_of_torch": ("torch", "os.system", "touch {}"),
    "class_of_torch": ("torch.nn.modules.linear", "Linear", "{}"),
}


def _gadget(module: str, name: str, *arguments: str) -> Maker:
    def maker(marker: Path) -> bytes:
        filled = [argument.format(marker) for argument in arguments]
        return torch_zip(b"\x80\x02}" + text(b"w") + call(module, name, *filled) + b"s.")

    return maker


FILES |= {f"calls_{name}": _gadget(*words) for name, words in GADGETS.items()}


def _with_canary(marker: Path) -> dict[str, object]:
    return {"state_dict": {"fc.weight": torch.zeros(2, 2)}, "extra": Canary(marker)}


def _plain(protocol: int) -> Maker:
    return lambda marker: pickle.dumps(Canary(marker), protocol)


def _in_torch(protocol: int, *, legacy: bool) -> Maker:
    return lambda marker: saved(_with_canary(marker), protocol, legacy=legacy)


for _protocol in range(pickle.HIGHEST_PROTOCOL + 1):
    # a `__reduce__` in every protocol, and around it every format; source: fickling #221 and picklescan's suite
    FILES[f"plain_pickle_of_protocol_{_protocol}"] = _plain(_protocol)
    FILES[f"zip_with_protocol_{_protocol}"] = _in_torch(_protocol, legacy=False)
    FILES[f"legacy_with_protocol_{_protocol}"] = _in_torch(_protocol, legacy=True)


@into(FILES)
def whole_module(_: Path) -> bytes:
    """The customer's own module, whole: no attack, but its class would be imported."""
    return saved(torch.nn.Sequential(torch.nn.Linear(2, 2)), 2, legacy=False)


@into(FILES)
def result_popped(marker: Path) -> bytes:
    """The call's result is thrown away, so that the value looks innocent. Source: GHSA-mxhj-88fx-4pcv."""
    payload = b"\x80\x02" + call("builtins", "eval", f"open('{marker}', 'w')") + b"0"
    return torch_zip(payload + weights_pickle()[2:], Entry("archive/data/0", bytes(16)))


@into(FILES)
def payload_in_a_second_pickle(marker: Path) -> bytes:
    """A legacy file whose list of storages is the payload, behind an innocent state_dict."""
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {}, {"a": 1}))
    return head + b"\x80\x02" + call("builtins", "eval", f"open('{marker}', 'w')") + b"."


@into(FILES)
def breaks_after_the_payload(marker: Path) -> bytes:
    """No end and a byte that is no opcode: scanners give up, loaders have run the call. Source: arXiv 2508.19774."""
    return b"\x80\x02" + call("os", "system", f"touch {marker}") + b"\xff"


@into(FILES)
def breaks_after_the_payload_in_a_zip(marker: Path) -> bytes:
    """Likewise, inside of an archive."""
    return torch_zip(b"\x80\x02" + call("os", "system", f"touch {marker}") + b"\xff")


@into(FILES)
def frame_that_lies(marker: Path) -> bytes:
    """A frame of protocol 4 whose length readers treat differently. Source: cpython #154848."""
    return b"\x80\x04\x95" + struct.pack("<Q", 2**40) + call("os", "system", f"touch {marker}") + b"."


@into(FILES)
def name_from_the_stack(marker: Path) -> bytes:
    """Module and name as texts that come back from the memo."""
    names = b"\x8c\x02os\x94\x8c\x06system\x94" + b"00" + b"h\x00h\x01\x93"
    return torch_zip(b"\x80\x04" + names + text(f"touch {marker}".encode()) + b"\x85R.")


@into(FILES)
def instance_of_protocol_0(marker: Path) -> bytes:
    """The INST opcode, which names and calls in one."""
    return torch_zip(b"(V" + f"touch {marker}".encode() + b"\nios\nsystem\n.")


@into(FILES)
def object_of_protocol_1(marker: Path) -> bytes:
    """The OBJ opcode, whose class lies on the stack."""
    return torch_zip(b"(cos\nsystem\n" + text(f"touch {marker}".encode()) + b"o.")


@into(FILES)
def new_object_with_keywords(marker: Path) -> bytes:
    """The NEWOBJ_EX opcode of protocol 4."""
    return torch_zip(b"\x80\x04csubprocess\nPopen\n(" + text(f"touch {marker}".encode()) + b"t}\x92.")


@into(FILES)
def state_of_a_class(marker: Path) -> bytes:
    """Attributes that are set on a function of torch's own. Source: CVE-2025-32434."""
    state = b"}" + text(b"__call__") + call("os", "system", f"touch {marker}") + b"s"
    return torch_zip(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + state + b"b.")


@into(FILES)
def extension_registry(_: Path) -> bytes:
    """A class by its number in copyreg's registry."""
    return torch_zip(b"\x80\x02\x82\x01)R.")


@into(FILES)
def persistent_text(marker: Path) -> bytes:
    """A persistent id of protocol 0 where PyTorch has tuples."""
    return torch_zip(b"P" + str(marker).encode() + b"\n.")


@into(FILES)
def persistent_module(marker: Path) -> bytes:
    """A persistent id of a kind that once loaded source code."""
    return torch_zip(
        b"\x80\x02(" + text(b"module") + b"cos\nsystem\n" + text(str(marker).encode()) + text(b"") + b"tQ."
    )


@into(FILES)
def buffer_from_outside(_: Path) -> bytes:
    """The NEXT_BUFFER opcode of protocol 5."""
    return torch_zip(b"\x80\x05\x97.")


@into(FILES)
def storage_that_is_a_pickle(marker: Path) -> bytes:
    """`torch.storage._load_from_bytes`, which unpickles what it is given, in an archive."""
    inner = pickle.dumps(Canary(marker), 2)
    return torch_zip(b"\x80\x03ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(inner)) + inner + b"\x85R.")


@into(FILES)
def storage_in_a_plain_pickle_that_is_a_pickle(marker: Path) -> bytes:
    """Likewise, where it is what a pickled tensor has."""
    inner = saved(Canary(marker), 2, legacy=True)
    return b"\x80\x03ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(inner)) + inner + b"\x85R."


@into(FILES)
def storage_in_a_storage(_: Path) -> bytes:
    """Files inside files, as deep as one likes."""
    content = pickle.dumps(1)
    for _depth in range(50):
        content = b"\x80\x03ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(content)) + content + b"\x85R."
    return content


@into(FILES)
def pickle_in_a_numpy_array(marker: Path) -> bytes:
    """An array of objects. Source: CVE-2019-6446."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + pickle.dumps([Canary(marker)])


@into(FILES)
def old_tar_with_a_pickle(marker: Path) -> bytes:
    """The format of before version 0.1.10, which is a tar of pickles."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in {"sys_info": pickle.dumps({}), "pickle": pickle.dumps(Canary(marker))}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
