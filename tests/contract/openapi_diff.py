"""What changed between two OpenAPI documents, and which of it breaks a client (service.md 2.6).

    python -m tests.contract.openapi_diff              shows the changes to the stored document
    python -m tests.contract.openapi_diff --write      stores it, if nothing breaks
    python -m tests.contract.openapi_diff --write --breaking     stores it all the same

==========================  ================================================================
breaks a client             does not
==========================  ================================================================
path or operation gone      new path or operation
status, media type, header  new status, media type or header of an answer
or field of an answer gone
field of an answer no       field of an answer always there now
longer always there
field of an answer of       further value of a closed list in an answer
another type
request narrowed: type,     request widened
value, bound, field gone
request asks for more:      new parameter or field that may be left out
parameter, field, key
==========================  ================================================================
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SNAPSHOT = Path(__file__).with_name("openapi.json")
ADVICE = (
    "If nothing of this breaks a client: `make openapi`, and commit the new tests/contract/"
    "openapi.json.\nIf it must break: keep the old way beside the new one with `Deprecation` and "
    "`Sunset` headers\n(service.md 2.6); to accept a break all the same: `make openapi BREAKING=1`,"
    " and say so in CHANGELOG.md."
)
LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems")  # more of it takes less
UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
DEPTH_MAX = 12


def current_document() -> dict[str, Any]:
    """What this checkout serves."""
    from service.app import create_app
    from service.settings import Settings

    with TemporaryDirectory() as directory:
        app = create_app(Settings(data_dir=Path(directory), database_url="sqlite://"))
        app.state.database.dispose()
        document: dict[str, Any] = json.loads(json.dumps(app.openapi()))
    return document


def text_of(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def breaks(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for each change from `old` to `new` that breaks a client."""
    return sorted(set(Comparison(old, new).breaks()))


class Comparison:
    """Of two documents; references are followed in each of them."""

    def __init__(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        self._old, self._new = old, new

    def breaks(self) -> Iterator[str]:
        for path, item in self._old["paths"].items():
            for method, before in item.items():
                name = f"{method.upper()} {path}"
                after = self._new["paths"].get(path, {}).get(method)
                if after is None:
                    yield f"{name}: the operation is gone"
                    continue
                if before.get("operationId") != after.get("operationId"):
                    yield f"{name}: operationId is another, which names methods of made clients"
                if not before.get("security") and after.get("security"):
                    yield f"{name}: asks for a key now"
                yield from self._parameters(name, before, after)
                yield from self._body(name, before, after)
                yield from self._answers(name, before, after)

    def _parameters(self, name: str, before: Any, after: Any) -> Iterator[str]:
        old, new = self._named(before, self._old), self._named(after, self._new)
        for key, parameter in old.items():
            where = f"{name}: {key[0]} parameter {key[1]}"
            if key not in new:
                yield f"{where} is gone"
                continue
            if new[key].get("required") and not parameter.get("required"):
                yield f"{where} is required now"
            yield from self._asked(where, parameter["schema"], new[key]["schema"])
        for key in new.keys() - old.keys():
            if new[key].get("required"):
                yield f"{name}: {key[0]} parameter {key[1]} is new and required"

    def _named(self, operation: Any, document: Any) -> dict[tuple[str, str], Any]:
        found = [_resolved(one, document) for one in operation.get("parameters", [])]
        return {(one["in"], one["name"]): one for one in found}

    def _body(self, name: str, before: Any, after: Any) -> Iterator[str]:
        old, new = before.get("requestBody"), after.get("requestBody")
        if new and new.get("required") and not (old and old.get("required")):
            yield f"{name}: the request needs a body now"
        if not old:
            return
        for kind, media in old["content"].items():
            if kind not in (new or {"content": {}})["content"]:
                yield f"{name}: request bodies of {kind} are no longer taken"
                continue
            yield from self._asked(
                f"{name}: request", media["schema"], new["content"][kind]["schema"]
            )

    def _answers(self, name: str, before: Any, after: Any) -> Iterator[str]:
        for status, answer in before["responses"].items():
            where = f"{name}: answer {status}"
            if status not in after["responses"]:
                yield f"{where} is gone"
                continue
            old = _resolved(answer, self._old)
            new = _resolved(after["responses"][status], self._new)
            for header in old.get("headers", {}).keys() - new.get("headers", {}).keys():
                yield f"{where}: header {header} is gone"
            for kind, media in old.get("content", {}).items():
                if kind not in new.get("content", {}):
                    yield f"{where}: {kind} is gone"
                    continue
                for key in ("schema", "itemSchema"):  # of the whole, of each event of a stream
                    if key in media:
                        told = new["content"][kind].get(key, {})
                        yield from self._told(where, media[key], told)

    def _asked(self, where: str, before: Any, after: Any, depth: int = 0) -> Iterator[str]:
        """What clients send: everything they may send now they may send then."""
        old, new = _resolved(before, self._old), _resolved(after, self._new)
        old_kinds, new_kinds = self._kinds(old, self._old), self._kinds(new, self._new)
        if "any" in new_kinds or depth > DEPTH_MAX:
            return
        for kind in sorted(old_kinds.keys() - new_kinds.keys()):
            yield f"{where}: takes no {kind} any more"
        for kind in old_kinds.keys() & new_kinds.keys():
            one, other = old_kinds[kind], new_kinds[kind]
            yield from _bounds(where, one, other)
            yield from self._fields_asked(where, one, other, depth)
            if "items" in one and "items" in other:
                yield from self._asked(f"{where}[]", one["items"], other["items"], depth + 1)

    def _fields_asked(self, where: str, one: Any, other: Any, depth: int) -> Iterator[str]:
        fields, others = one.get("properties", {}), other.get("properties", {})
        for name in sorted(set(other.get("required", ())) - set(one.get("required", ()))):
            yield f"{where}.{name}: is required now"
        for name, field in fields.items():
            if name in others:
                yield from self._asked(f"{where}.{name}", field, others[name], depth + 1)
            elif other.get("additionalProperties") is False:
                yield f"{where}.{name}: is gone"

    def _told(self, where: str, before: Any, after: Any, depth: int = 0) -> Iterator[str]:
        """What clients read: everything they could rely on is still there."""
        old, new = _resolved(before, self._old), _resolved(after, self._new)
        if depth > DEPTH_MAX:
            return
        old_kinds, new_kinds = self._kinds(old, self._old), self._kinds(new, self._new)
        if "any" not in old_kinds and old_kinds.keys() != new_kinds.keys():
            kinds = (" or ".join(sorted(found)) for found in (old_kinds, new_kinds))
            yield f"{where}: was {next(kinds)} and is {next(kinds)}"
        for kind in old_kinds.keys() & new_kinds.keys():
            one, other = old_kinds[kind], new_kinds[kind]
            yield from self._fields_told(where, one, other, depth)
            if "items" in one:
                yield from self._told(f"{where}[]", one["items"], other.get("items", {}), depth + 1)

    def _fields_told(self, where: str, one: Any, other: Any, depth: int) -> Iterator[str]:
        others, always = other.get("properties", {}), set(other.get("required", ()))
        for name, field in one.get("properties", {}).items():
            if name not in others:
                yield f"{where}.{name}: is gone"
                continue
            if name in one.get("required", ()) and name not in always:
                yield f"{where}.{name}: is no longer always there"
            yield from self._told(f"{where}.{name}", field, others[name], depth + 1)

    def _kinds(self, schema: Any, document: Any) -> dict[str, Any]:
        """The alternatives of a schema by type; objects of several shapes by their title."""
        if "allOf" in schema:
            return self._kinds(_merged([_resolved(s, document) for s in schema["allOf"]]), document)
        found: dict[str, Any] = {}
        for branch in schema.get("anyOf") or schema.get("oneOf") or []:
            found |= self._kinds(_resolved(branch, document), document)
        if found:
            return found
        types = schema.get("type") or _type_of_values(schema)
        return dict.fromkeys([types] if isinstance(types, str) else types, schema)


def _bounds(where: str, one: Any, other: Any) -> Iterator[str]:
    values, narrowed = _values(one), _values(other)
    if narrowed is not None and (values is None or set(values) - set(narrowed)):
        gone = (
            "all but a list" if values is None else ", ".join(sorted(set(values) - set(narrowed)))
        )
        yield f"{where}: no longer takes {gone}"
    for names, sign in ((LOWER, 1), (UPPER, -1)):
        for name in names:
            if name in other and (name not in one or sign * other[name] > sign * one[name]):
                was = f"{one[name]:g}" if name in one else "absent"
                yield f"{where}: {name} is {other[name]:g} and was {was}"
    if "pattern" in other and other["pattern"] != one.get("pattern"):
        yield f"{where}: pattern is another"


def _values(schema: Any) -> list[str] | None:
    if "const" in schema:
        return [json.dumps(schema["const"])]
    return [json.dumps(value) for value in schema["enum"]] if "enum" in schema else None


def _type_of_values(schema: Any) -> str | list[str]:
    if "properties" in schema:
        return "object"
    names = {str: "string", int: "integer", bool: "boolean", type(None): "null", float: "number"}
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return sorted({names[type(value)] for value in values}) or "any"


def _merged(parts: list[Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            held = whole.get(key)
            if isinstance(held, dict) and isinstance(value, dict):
                whole[key] = _merged([held, value])
            else:
                whole[key] = value
    return whole


def _resolved(value: Any, document: Any) -> Any:
    while "$ref" in value:
        found = document
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        value = found
    return value


def main(arguments: list[str] | None = None) -> int:
    """0 if nothing is left to do, 1 if the stored document is not the one served."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--write", action="store_true", help="store the document")
    parser.add_argument("--breaking", action="store_true", help="also if it breaks clients")
    chosen = parser.parse_args(arguments)
    new = current_document()
    old = json.loads(SNAPSHOT.read_text()) if SNAPSHOT.exists() else {"paths": {}}
    found = breaks(old, new)
    print("\n".join(f"breaks clients: {line}" for line in found))
    if chosen.write and (chosen.breaking or not found):
        SNAPSHOT.write_text(text_of(new))
        print(f"stored {SNAPSHOT.name}: {len(new['paths'])} paths")
        return 0
    if old != new:
        print(ADVICE)
    return int(old != new)


if __name__ == "__main__":
    sys.exit(main())
