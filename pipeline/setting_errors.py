"""What is wrong with a setting, in one sentence of the user's terms instead of the validator's."""

import difflib
from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from compress.pipeline.errors import UsageError

_WHOLE, _NUMBER, _TEXT, _SWITCH, _LIST = "a whole number", "a number", "text", "true or false", "a list"

_MUST_BE = {
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "of another form",
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), _WHOLE),
    **dict.fromkeys(("float_type", "float_parsing"), _NUMBER),
    **dict.fromkeys(("bool_type", "bool_parsing"), _SWITCH),
    **dict.fromkeys(("model_type", "model_attributes_type"), "a group of settings"),
    "string_type": _TEXT,
    "tuple_type": _LIST,
}
"""By type of error. Source: https://docs.pydantic.dev/latest/errors/validation_errors/."""

_LONGEST = 60
"""Characters of a refused value that are repeated."""


def refusal(error: ValidationError, model: type[BaseModel], origin: str) -> UsageError:
    """The first thing that is wrong, and a hint.

    Args:
        error: what validation of the settings' model ended in.
        model: that model.
        origin: where the value comes from, such as ` (from my.yaml)`; may be empty.
    """
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    name = ".".join(path)
    if first["type"] in ("extra_forbidden", "invalid_key"):
        return UsageError(f"There is no setting '{name}'{origin}.", _suggestion(path, model))
    must_be = _MUST_BE.get(first["type"], first["msg"]).format(**first.get("ctx", {}))
    value = repr(first["input"])
    shown = value if len(value) <= _LONGEST else value[:_LONGEST] + "..."
    return UsageError(f"The setting '{name}' cannot be {shown}{origin}: it must be {must_be}.", _meaning(path, model))


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted name of every group and every setting."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if group := _group(field):
            yield from known_keys(group, f"{prefix}{name}.")


def _suggestion(path: Sequence[str], model: type[BaseModel]) -> str:
    """The nearest name beside the unknown one, else the nearest anywhere, else how to see them all."""
    group, last = ".".join(path[:-1]), path[-1]
    known = list(known_keys(model))
    beside = [key for key in known if key.rpartition(".")[0] == group]
    for keys in (beside, known):
        close = difflib.get_close_matches(last, {key.rpartition(".")[2] for key in keys}, n=1)
        if close:
            meant = [f"'{key}'" for key in keys if key.rpartition(".")[2] == close[0]]
            return f"Did you mean {' or '.join(meant)}?"
    return "`compress schema` tells all settings."


def _meaning(path: Sequence[str], model: type[BaseModel]) -> str:
    """What the setting is for."""
    for name in path:
        field = model.model_fields[name]
        group = _group(field)
        if group is None:
            return f"{'.'.join(path)}: {field.description}" if field.description else ""
        model = group
    return f"Its settings are {', '.join(model.model_fields)}."


def _group(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
