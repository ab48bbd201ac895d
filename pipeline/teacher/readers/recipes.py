"""How the owner of a pickle that would run code gets at its weights."""

from collections.abc import Mapping
from typing import Literal

from compress.pipeline.errors import UnsafeInputError
from compress.pipeline.teacher.readers.contents import WEIGHT_KEYS
from compress.pipeline.teacher.readers.formats import printable
from compress.pipeline.teacher.readers.pickles import Inert

Loader = Literal["torch", "pickle"]

_LOADS: Mapping[Loader, str] = {
    "torch": "torch.load({!r}, map_location='cpu', weights_only=False)",
    "pickle": "pickle.loads(pathlib.Path({!r}).read_bytes())",
}

_MODULE = """Where the model's code is at hand, save its weights alone:
    model = {load}
    torch.save({{'state_dict': model.state_dict()}}, 'weights.pt')
"""

_DICTIONARY = """Where you trust the file, save its weights alone:
    checkpoint = {load}
    torch.save({{'state_dict': checkpoint['{key}']}}, 'weights.pt')
"""

_ALLOWING = "Or let it run that code, with all your rights: --allow-pickle. Only for files that you trust."

_MOST_NAMES = 5


def refusal(names: set[str], name: str, loader: Loader, tree: object) -> UnsafeInputError:
    """The error for a pickle that names code.

    Args:
        names: what it would import, beyond what weights need.
        name: the file's.
        loader: what loads it in Python.
        tree: what it holds, as far as that is plain data; None where that is unknown.
    """
    listed = ", ".join(printable(found) for found in sorted(names)[:_MOST_NAMES])
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    sentence = f"'{name}' would execute code when loaded: it imports {listed}{more}."
    return UnsafeInputError(sentence, _recipe(_LOADS[loader].format(name), tree) + _ALLOWING)


def _recipe(load: str, tree: object) -> str:
    if isinstance(tree, Inert):
        return _MODULE.format(load=load)
    found = tree if isinstance(tree, Mapping) else {}
    key = next((key for key in WEIGHT_KEYS if isinstance(found.get(key), Mapping | Inert)), WEIGHT_KEYS[0])
    if isinstance(found.get(key), Inert):
        return _MODULE.format(load=f"{load}['{key}']")
    return _DICTIONARY.format(load=load, key=key)
