"""Everything that a report tells, as one record."""

import json
import math
from typing import Any, Literal, Self

from pydantic import model_validator
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import FloatSchema, ModelSchema

from compress.exporters.targets import Target
from compress.pipeline.records import (
    DistillRecord,
    EmbeddingRecord,
    ExportRecord,
    QuantizeRecord,
    Record,
    TeacherRecord,
    ValidateRecord,
)

REPORT_FILE = "report.json"


class ReportData(Record):
    """The records of all stages and what they ran with."""

    schema_version: Literal[2] = 2
    """Of the form of this record; docs/report.md says when it changes."""
    title: str
    target: Target
    teacher: TeacherRecord
    embedding: EmbeddingRecord
    distill: DistillRecord
    quantize: QuantizeRecord | None
    export: ExportRecord
    validation: ValidateRecord
    labels: tuple[str, ...]
    settings: dict[str, Any]
    """As resolved, in JSON's types."""
    timings: dict[str, float]
    """Seconds of each stage, in their order."""
    seed: int
    versions: dict[str, str]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """What a report is made from fits together, whoever wrote it."""
        classes, ledger = len(self.labels), self.validation.ledger
        maps = [row.confusion for row in ledger if row.confusion is not None]
        numbers = [number for grid in self.distill.samples for number in grid.classes]
        numbers += [number for row in ledger for pair in row.confusions for number in (pair.teacher, pair.artifact)]
        checks = {
            "a row has other classes": all(len(row.agreement_by_class) == classes for row in ledger),
            "a class is not there": all(0 <= number < classes for number in numbers),
            "a table of confusions is not square": all(
                len(table) == classes and all(len(row) == classes and min(row) >= 0 for row in table) for table in maps
            ),
            "real images are told of other artifacts": self.validation.holdout is None
            or [row.artifact for row in self.validation.holdout.rows] == [row.artifact for row in ledger],
            "what is shipped is not in the ledger": self.validation.shipped in [row.artifact for row in ledger],
            "there are no graphs": bool(self.export.graphs),
            "there is no student": self.distill.parameters > 0,
        }
        for problem, holds in checks.items():
            if not holds:
                raise ValueError(problem)
        return self


NOT_FINITE = ("NaN", "Infinity", "-Infinity")
"""How a number that JSON has no form for is written."""


class _Published(GenerateJsonSchema):
    """The schema of what is written: numbers that are not finite are strings; fields that a later version adds are allowed."""

    def float_schema(self, schema: FloatSchema) -> JsonSchemaValue:
        return {"anyOf": [super().float_schema(schema), {"enum": list(NOT_FINITE)}]}

    def model_schema(self, schema: ModelSchema) -> JsonSchemaValue:
        published = super().model_schema(schema)
        published.pop("additionalProperties", None)
        return published


def report_schema() -> dict[str, Any]:
    """The JSON Schema of `report.json`."""
    schema = ReportData.model_json_schema(mode="serialization", schema_generator=_Published)
    # It has a default, which makes it seem optional; it is what a reader looks at first.
    required = ["schema_version", *schema["required"]]
    return {"$schema": _Published.schema_dialect, **schema, "required": required}


def to_json(data: ReportData) -> bytes:
    """The record as ASCII JSON that any reader takes and `ReportData.model_validate_json` reads back.

    JSON has no infinity, so a number that is not finite is written as the string `Infinity`, `-Infinity` or `NaN`.
    """
    return strict_json(data.model_dump(mode="json")).encode() + b"\n"


def strict_json(value: Any) -> str:
    """JSON that any reader takes: a number that is not finite is written as a string."""
    return json.dumps(_without_non_finite(value), indent=2, allow_nan=False)


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_non_finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_non_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return NOT_FINITE[0 if math.isnan(value) else 1 if value > 0 else 2]
    return value
