"""The JSON of an exported program: what says how it computes, checked; whatever else is there is ignored.

Source: torch/_export/serde/schema.py of PyTorch, major version 8 of the schema.
"""

import json
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.readers.files import DAMAGED_HINT, HOSTILE_HINT
from compress.pipeline.teacher.readers.formats import printable

EXPORT_HINT = (
    "Where the model's code is at hand, export it anew with a current PyTorch:\n"
    "    any_number = {0: torch.export.Dim.AUTO}\n"
    "    program = torch.export.export(model.eval(), (images,), dynamic_shapes=(any_number,))\n"
    "    torch.export.save(program, 'teacher.pt2')"
)

SCHEMA_MAJOR = 8

MOST_BYTES = 2**26
MOST_VALUES = 3_000_000
"""Of a document, so that a small file cannot become many objects: a program of 1,000 operations has about 150,000."""

MOST_NODES = 20_000

MOST_ENTRIES = 50_000
"""Of inputs, outputs, tensors and intermediate results."""

_MOST_ITEMS = 4096
"""Of one argument."""

Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Number = float | Literal["Infinity", "-Infinity", "NaN"]
Parsed = TypeVar("Parsed", bound="Part")


def _bounded(table: object) -> object:
    """Pydantic checks a dictionary's length only after all that is in it."""
    if isinstance(table, dict) and len(table) > MOST_ENTRIES:
        raise ValueError("too many entries")
    return table


class Part(BaseModel):
    """Some object of the document."""

    model_config = ConfigDict(frozen=True, strict=True)


class _Hint(Part):
    as_int: Integer | None = None


class _Expression(Part):
    hint: _Hint | None = None


class Size(Part):
    """A length, or an expression in symbols and perhaps what it was in the example that the program was exported with."""

    as_int: Integer | None = None
    as_expr: _Expression | None = None

    @property
    def example(self) -> int | None:
        """The length in the example."""
        hint = self.as_expr.hint if self.as_expr else None
        return self.as_int if hint is None else hint.as_int


class TensorMeta(Part):
    """What a tensor is: its number type by code, its lengths and strides in elements."""

    dtype: int
    sizes: Annotated[list[Size], Field(max_length=64)]
    strides: Annotated[list[Size], Field(max_length=64)] = []
    storage_offset: Size = Size(as_int=0)
    layout: int = 7

    @property
    def shape(self) -> tuple[int | None, ...]:
        """None for what is symbolic."""
        return tuple(size.as_int for size in self.sizes)


class Named(Part):
    """A reference to a tensor of the graph."""

    name: str


class MaybeNamed(Part):
    """The same in a list where some may be missing."""

    as_tensor: Named | None = None


class Symbol(Part):
    """A size: a number, or the name of a value of the graph."""

    as_name: str | None = None
    as_int: Integer | None = None


class Value(Part):
    """An argument or a result. Exactly one field is given; `kind` names it."""

    model_config = ConfigDict(extra="allow")

    as_none: bool | None = None
    as_tensor: Named | None = None
    as_tensors: Annotated[list[Named], Field(max_length=_MOST_ITEMS)] | None = None
    as_optional_tensor: MaybeNamed | None = None
    as_optional_tensors: Annotated[list[MaybeNamed], Field(max_length=_MOST_ITEMS)] | None = None
    as_int: Integer | None = None
    as_ints: Annotated[list[Integer], Field(max_length=_MOST_ITEMS)] | None = None
    as_float: Number | None = None
    as_floats: Annotated[list[Number], Field(max_length=_MOST_ITEMS)] | None = None
    as_bool: bool | None = None
    as_bools: Annotated[list[bool], Field(max_length=_MOST_ITEMS)] | None = None
    as_string: Annotated[str, Field(max_length=_MOST_ITEMS)] | None = None
    as_sym_int: Symbol | None = None
    as_sym_ints: Annotated[list[Symbol], Field(max_length=_MOST_ITEMS)] | None = None
    as_sym_bool: Symbol | None = None
    as_sym_float: Symbol | None = None
    as_scalar_type: int | None = None

    @property
    def kind(self) -> str:
        """The field that is given; several or none are named together."""
        return " and ".join(sorted(self.model_fields_set | (self.model_extra or {}).keys())) or "nothing"


class NodeInput(Part):
    """An argument under its name in the operator's schema."""

    name: str
    arg: Value


class Node(Part):
    """One call."""

    target: str
    inputs: Annotated[list[NodeInput], Field(max_length=64)]
    outputs: Annotated[list[Value], Field(max_length=64)]


class Graph(Part):
    """Calls in order of execution, and what their results are."""

    nodes: Annotated[list[Node], Field(max_length=MOST_NODES)]
    tensor_values: Annotated[dict[str, TensorMeta], BeforeValidator(_bounded)]


class _ToArgument(Part):
    arg: Value


class _ToParameter(Part):
    arg: Named
    parameter_name: str


class _ToBuffer(Part):
    arg: Named
    buffer_name: str


class _ToConstant(Part):
    arg: Named
    tensor_constant_name: str


class InputSpec(Part):
    """What an input of the graph is: images, or a tensor of the file."""

    user_input: _ToArgument | None = None
    parameter: _ToParameter | None = None
    buffer: _ToBuffer | None = None
    tensor_constant: _ToConstant | None = None
    constant_input: dict[str, object] | None = None

    @property
    def is_object(self) -> bool:
        """Whether it is none of these, but a token or some object of Python."""
        return self.model_fields_set == set()

    @property
    def stored(self) -> tuple[str, str] | None:
        """The name in the graph and the name in the file, where it is a tensor of the file."""
        if self.parameter:
            return self.parameter.arg.name, self.parameter.parameter_name
        if self.buffer:
            return self.buffer.arg.name, self.buffer.buffer_name
        return (
            (self.tensor_constant.arg.name, self.tensor_constant.tensor_constant_name) if self.tensor_constant else None
        )


class OutputSpec(Part):
    """What an output of the graph is: an answer, or something that training would keep, such as a changed buffer."""

    user_output: _ToArgument | None = None


class Signature(Part):
    """What goes in and comes out."""

    input_specs: Annotated[list[InputSpec], Field(max_length=MOST_ENTRIES)]
    output_specs: Annotated[list[OutputSpec], Field(max_length=MOST_ENTRIES)]


class GraphModule(Part):
    """A graph with its signature."""

    graph: Graph
    signature: Signature


class Version(Part):
    """Of the schema."""

    major: int


class Document(Part):
    """An exported program."""

    schema_version: Version
    graph_module: GraphModule


class Payload(Part):
    """How one tensor is stored."""

    path_name: str
    use_pickle: bool
    tensor_meta: TensorMeta | None = None


class Payloads(Part):
    """All tensors by name."""

    config: Annotated[dict[str, Payload], BeforeValidator(_bounded)]


def parse(kind: type[Parsed], content: memoryview, name: str) -> Parsed:
    """A document, read with its limits checked before anything is made of it.

    Args:
        kind: what it should be.
        content: the JSON.
        name: the file's, for messages.

    Raises:
        InputError: it is too large, no JSON, or not of that form.
    """
    data = bytes(content)
    values = sum(data.count(mark) for mark in (b",", b"[", b"{"))
    if len(data) > MOST_BYTES or values > MOST_VALUES:
        raise InputError(
            f"'{name}' describes its program in {len(data):,} bytes and {values:,} values of JSON, which is too much.",
            HOSTILE_HINT,
        )
    try:
        return kind.model_validate(json.loads(data))
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        reason = f"it has no sensible '{printable(place)}'" if place else "its document is no JSON object"
    except (ValueError, RecursionError):
        reason = "its document is no JSON"
    raise InputError(f"'{name}' is not a sound torch.export program: {reason}.", DAMAGED_HINT)


def check_version(document: Document, name: str) -> None:
    """
    Raises:
        InputError: the program was saved under another schema.
    """
    major = document.schema_version.major
    if major != SCHEMA_MAJOR:
        raise InputError(
            f"'{name}' is a torch.export program of schema version {major}; version {SCHEMA_MAJOR} is read.",
            EXPORT_HINT,
        )
