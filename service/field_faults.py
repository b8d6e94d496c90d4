"""Turns the framework's validation faults into ours: pointer, code, message, no input.

Of a fault survive our code, our message for it and a pointer made of known names only
(service.md 3.2). An unknown key is never named: its pointer ends in `*` and the message
offers the nearest known field.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from service.errors import MalformedRequest, ServiceError, UnknownField

ERRORS_MAX = 100

_MESSAGES: tuple[tuple[str, str, str], ...] = (
    # prefix of the library's fault type, our code, our message
    ("missing", "field_missing", "The field is required."),
    ("string_type", "field_type", "The value must be text."),
    ("bool_", "field_type", "The value must be true or false."),
    ("int_", "field_type", "The value must be a whole number."),
    ("float_", "field_type", "The value must be a number."),
    ("decimal_", "field_type", "The value must be a decimal number."),
    ("list_type", "field_type", "The value must be a list."),
    ("dict_type", "field_type", "The value must be an object."),
    ("model_", "field_type", "The value must be an object."),
    ("string_too", "field_invalid", "The text is too short or too long."),
    ("string_pattern", "field_invalid", "The text has characters that are not allowed here."),
    ("too_", "field_invalid", "The value has too few or too many parts."),
    ("greater_", "field_invalid", "The number is outside the allowed range."),
    ("less_", "field_invalid", "The number is outside the allowed range."),
    ("literal_error", "field_invalid", "The value is none of those offered."),
    ("enum", "field_invalid", "The value is none of those offered."),
)


class KnownNames:
    """The names that a route's body, query and path may use, level by level."""

    def __init__(self, route: Any) -> None:
        self._places: dict[str, list[Any]] = {"body": [], "query": [], "path": [], "header": []}
        dependant = getattr(route, "dependant", None)
        if dependant is not None:
            self._collect(dependant)

    def _collect(self, dependant: Any) -> None:
        for place, fields in self._places.items():
            fields.extend(getattr(dependant, f"{place}_params", ()))
        for inner in dependant.dependencies:
            self._collect(inner)

    def resolve(self, location: Sequence[Any]) -> tuple[str, list[str]]:
        """The pointer to `location`, and the known names at its last level."""
        place = str(location[0]) if location else "body"
        level = self._top(place)
        parts: list[str] = []
        known: list[str] = []
        for part in location[1:]:
            known = sorted(level)
            if isinstance(part, int):
                parts.append(str(part))
            elif part in level:
                parts.append(str(part))
                level = _names_inside(_models_in(level[part]))
            else:
                parts.append("*")
        return "/" + "/".join(parts), known

    def _top(self, place: str) -> dict[str, Any]:
        fields = self._places.get(place, [])
        named = {field.alias: field.field_info.annotation for field in fields}
        models = [m for a in named.values() for m in _models_in(a)]
        if place == "body" and len(fields) == 1:
            return _names_inside(models)
        return named | _names_inside(models)


def request_fault(route: Any, faults: Sequence[Any]) -> ServiceError:
    """The one answer to all faults of a request. A 400 wins over a 422."""
    kinds = [str(fault.get("type", "")) for fault in faults]
    if "json_invalid" in kinds:
        return MalformedRequest("The body is not valid JSON.")
    names = KnownNames(route)
    for fault, kind in zip(faults, kinds, strict=True):
        if kind == "extra_forbidden":
            location = fault.get("loc", ())
            pointer, known = names.resolve(location)
            nearest = _nearest(str(location[-1]), known)
            return UnknownField(pointer=_starred(pointer), nearest=nearest)
    errors = [
        _described(kind, names.resolve(fault.get("loc", ()))[0])
        for fault, kind in zip(faults[:ERRORS_MAX], kinds[:ERRORS_MAX], strict=True)
    ]
    param = errors[0]["pointer"].strip("/").replace("/", ".") if errors else None
    return ServiceError(
        422,
        "field_invalid",
        errors[0]["message"] if len(errors) == 1 else "Some fields have unacceptable values.",
        param=param or None,
        extra={"errors": errors},
    )


def nearest_field(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`; None when nothing is known."""
    return _nearest(name, sorted(known))


def _nearest(name: str, known: Sequence[str]) -> str | None:
    found = difflib.get_close_matches(name[:64], known, n=1, cutoff=0.0)
    return found[0] if found else None


def _starred(pointer: str) -> str:
    return pointer.rpartition("/")[0] + "/*"


def _described(kind: str, pointer: str) -> dict[str, str]:
    for prefix, code, message in _MESSAGES:
        if kind.startswith(prefix):
            return {"pointer": pointer, "code": code, "message": message}
    return {
        "pointer": pointer,
        "code": "field_invalid",
        "message": "The value is not acceptable here.",
    }


def _names_inside(models: Iterable[type[BaseModel]]) -> dict[str, Any]:
    return {
        name: info.annotation
        for model in models
        for field, info in model.model_fields.items()
        for name in _spellings(field, info)
    }


def _spellings(field: str, info: FieldInfo) -> Iterator[str]:
    yield info.alias or field


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Every model class named in an annotation such as `Model | list[Other] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
