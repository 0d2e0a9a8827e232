"""Data made from a JSON Schema: always the same, and as small as it may be."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from squadron.runtime.wire.topics import validator_of
from squadron.testing.made_text import matching
from squadron.testing.misuse import ScriptError

#: How deep data nests before optional parts are left away: what refers to itself comes to an end.
MOST_DEPTH = 8
#: Candidates that are tried for one place, and items for a list of unlike ones.
_TRIES = 64
#: Texts of the formats that `format` names (JSON Schema 2020-12, section 7.3).
_FORMATS = {
    "date-time": "2024-02-29T12:30:00Z",
    "date": "2024-02-29",
    "time": "12:30:00Z",
    "duration": "PT1H",
    "email": "ana@example.com",
    "idn-email": "ana@example.com",
    "hostname": "example.com",
    "idn-hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/a",
    "uri-reference": "/a",
    "iri": "https://example.com/a",
    "iri-reference": "/a",
    "uri-template": "/a/{b}",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "json-pointer": "/a",
    "relative-json-pointer": "0/a",
    "regex": "a+",
}
#: Keywords that put schemas together.
_ALTERNATIVES = {"anyOf", "oneOf", "allOf", "if", "then", "else"}
#: By which keyword a schema without a type is known.
_KNOWN_BY = {
    "object": ("properties", "required", "additionalProperties", "patternProperties", "minProperties"),
    "array": ("items", "prefixItems", "contains", "minItems", "maxItems", "uniqueItems"),
    "string": ("pattern", "format", "minLength", "maxLength"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}


def made_data(schema: Mapping[str, Any] | bool, *, of: str = "it") -> Any:
    """Data that fits a schema.

    What the schema itself offers comes first: `const`, `enum`, `default`, `examples`. Objects have all their
    properties.

    Args:
        of: what the data is of, for the error.

    Raises:
        ScriptError: nothing that was tried fits; names what is wrong with the last.
    """
    try:
        validator = validator_of(dict(schema) if isinstance(schema, Mapping) else schema)
    except ValueError as wrong:
        raise ScriptError(f"{of} has a schema that nothing can be held against: {wrong}") from None
    last = "nothing fits it"
    for value in itertools.islice(_Maker(schema).values(schema, 0), _TRIES):
        error = next(validator.iter_errors(value), None)
        if error is None:
            return value
        last = error.message
    raise ScriptError(
        f"no data could be made for {of}: {last}",
        hint="add `examples` to its schema, or give the data: AnyModel(values=…)",
    )


class _Maker:
    """Makes candidates of one schema, the likeliest first."""

    def __init__(self, root: Any) -> None:
        self._root = root
        named = root if isinstance(root, Mapping) else {}
        #: What references lead to.
        self._shared = {word: named[word] for word in ("$defs", "definitions") if word in named}

    def values(self, schema: Any, depth: int) -> Iterator[Any]:
        """Candidates for a part of the schema; not all of them need fit."""
        if schema is True or schema == {}:
            yield from ("a", 1, {}, [], None, True, 1.5)
        if not isinstance(schema, Mapping) or depth > 2 * MOST_DEPTH:
            return
        if "$ref" in schema:
            schema = {**self._at(schema["$ref"]), **{key: part for key, part in schema.items() if key != "$ref"}}
            yield from self.values(schema, depth + 1)
            return
        if "const" in schema:
            yield schema["const"]
            return
        yield from schema.get("enum", ())
        if "enum" in schema:
            return
        yield from schema.get("examples", ())
        if "default" in schema:
            yield schema["default"]
        ways = itertools.islice(self._merged(schema), _TRIES)
        yield from _in_turn([self._of(merged, depth) for merged in ways])

    def _of(self, schema: Mapping[str, Any], depth: int) -> Iterator[Any]:
        kinds = schema.get("type") or next(
            (kind for kind, words in _KNOWN_BY.items() if any(word in schema for word in words)), "any"
        )
        kinds = [kinds] if isinstance(kinds, str) else kinds
        yield from _in_turn([self._of_kind(kind, schema, depth) for kind in kinds])

    def _at(self, reference: str) -> Mapping[str, Any]:
        """What a reference into the schema stands for (JSON pointer, RFC 6901)."""
        at = self._root
        for part in reference.removeprefix("#").split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            at = at[int(part)] if isinstance(at, list) else at[part]
        return at if isinstance(at, Mapping) else {}

    def _merged(self, schema: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The schema with one of its alternatives in it, for each of them."""
        rest = {word: part for word, part in schema.items() if word not in _ALTERNATIVES}
        groups: list[list[Any]] = [[part] for part in schema.get("allOf", ())]
        groups += [list(schema[word]) for word in ("anyOf", "oneOf") if word in schema]
        if "if" in schema:
            groups.append([{"allOf": [schema["if"], schema.get("then", {})]}, schema.get("else", {})])
        for chosen in itertools.product(*groups):
            merged = dict(rest)
            for part in chosen:
                merged = _both(merged, self._flat(part))
            if _ALTERNATIVES & merged.keys():
                yield from self._merged(merged)
            else:
                yield merged

    def _flat(self, part: Any) -> Mapping[str, Any]:
        while isinstance(part, Mapping) and "$ref" in part:
            part = {**self._at(part["$ref"]), **{key: each for key, each in part.items() if key != "$ref"}}
        return part if isinstance(part, Mapping) else {}

    def _of_kind(self, kind: str, schema: Mapping[str, Any], depth: int) -> Iterator[Any]:
        match kind:
            case "object":
                yield from self._objects(schema, depth)
            case "array":
                yield from self._arrays(schema, depth)
            case "string":
                yield from _strings(schema)
            case "integer" | "number":
                yield from _numbers(schema, whole=kind == "integer")
            case "boolean":
                yield from (True, False)
            case "null":
                yield None
            case _ if "const" in schema or "enum" in schema:
                yield from schema.get("enum", [schema.get("const")])
            case _:
                yield from ("a", 1, {}, [], None, True)

    def _objects(self, schema: Mapping[str, Any], depth: int) -> Iterator[Any]:
        properties, required = schema.get("properties", {}), list(schema.get("required", ()))
        for names, wanted in schema.get("dependentRequired", {}).items():
            required += wanted if names in properties else []
        whole = self._object(schema, [*properties, *required], depth) if depth < MOST_DEPTH else None
        if whole is not None:
            yield whole
        least = self._object(schema, required, depth)
        if least is not None:
            yield least

    def _object(self, schema: Mapping[str, Any], names: list[str], depth: int) -> dict[str, Any] | None:
        made: dict[str, Any] = {}
        properties, most = schema.get("properties", {}), schema.get("maxProperties", math.inf)
        required = schema.get("required", ())
        for name in dict.fromkeys([*required, *names]):
            if name not in required and len(made) >= most:
                break
            try:
                made[name] = self._first(self._property(schema, name), depth)
            except LookupError:
                if name in required:
                    return None
        for number in range(_TRIES):
            if len(made) >= schema.get("minProperties", 0):
                break
            name = self._new_name(schema, number)
            if name not in properties:
                try:
                    made.setdefault(name, self._first(self._property(schema, name), depth))
                except LookupError:
                    return None
        return made

    def _new_name(self, schema: Mapping[str, Any], number: int) -> str:
        patterns = list(schema.get("patternProperties", ()))
        if patterns and schema.get("additionalProperties") is False:
            return next(itertools.islice(matching(patterns[0]), number, None), "")
        names = (name for name in self.values(schema.get("propertyNames", {"type": "string"}), 0))
        return str(next(itertools.islice(names, number, None), f"key{number + 1}"))

    def _property(self, schema: Mapping[str, Any], name: str) -> Any:
        if name in schema.get("properties", {}):
            return schema["properties"][name]
        for pattern, part in schema.get("patternProperties", {}).items():
            if re.search(pattern, name):
                return part
        return schema.get("additionalProperties", True)

    def _arrays(self, schema: Mapping[str, Any], depth: int) -> Iterator[Any]:
        first, rest = schema.get("prefixItems", []), schema.get("items", True)
        contains = schema.get("contains")
        wanted = schema.get("minContains", 1) if contains is not None else 0
        most = schema.get("maxItems", math.inf)
        usual = 1 if rest is not False and depth < MOST_DEPTH else 0
        for count in dict.fromkeys((max(len(first) or usual, wanted), wanted, 0)):
            count = int(min(max(count, schema.get("minItems", 0)), most))
            parts = [
                first[place] if place < len(first) else contains if count - place <= wanted else rest
                for place in range(count)
            ]
            made: list[Any] = []
            for part in parts:
                unlike = (value for value in self.values(part, depth + 1) if self._fits(part, value))
                if schema.get("uniqueItems"):
                    unlike = (value for value in unlike if value not in made)
                value = next(itertools.islice(unlike, 1), _NONE)
                if value is _NONE:
                    break
                made.append(value)
            else:
                yield made

    def _first(self, part: Any, depth: int) -> Any:
        """The first candidate that fits.

        Raises:
            LookupError: none does.
        """
        for value in itertools.islice(self.values(part, depth + 1), _TRIES):
            if self._fits(part, value):
                return value
        raise LookupError

    def _fits(self, part: Any, value: Any) -> bool:
        if not isinstance(part, Mapping):
            return part is not False
        return bool(validator_of({**self._shared, **part}).is_valid(value))


_NONE = object()


def _in_turn(ways: list[Iterator[Any]]) -> Iterator[Any]:
    """One of each, again and again: the first way may never come to what fits."""
    for values in itertools.zip_longest(*ways, fillvalue=_NONE):
        yield from (value for value in values if value is not _NONE)


def _strings(schema: Mapping[str, Any]) -> Iterator[str]:
    least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    if "format" in schema and schema["format"] in _FORMATS:
        yield _FORMATS[schema["format"]]
    if "pattern" in schema:
        yield from (text for text in itertools.islice(matching(schema["pattern"], least), _TRIES))
        return
    for letter in "abcdefghijklmnopqrstuvwxyz":
        yield letter * int(min(max(least, 1), most))
    for number in range(_TRIES):
        yield f"a{number}".ljust(int(least), "a")


def _numbers(schema: Mapping[str, Any], *, whole: bool) -> Iterator[int | float]:
    """Numbers near the lower limit, or the upper, or one; steps of `multipleOf`."""
    step = schema.get("multipleOf", 1)
    if whole and step != int(step):
        step = step * 10 ** len(str(step).partition(".")[2])
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    base = 1 if low <= 1 <= high else low if math.isfinite(low) else high
    start = math.ceil(base / step) if base == 1 or math.isfinite(low) else math.floor(base / step)
    down = not math.isfinite(low) and base != 1
    if not whole and "multipleOf" not in schema and math.isfinite(low) and math.isfinite(high):
        yield (low + high) / 2
    for number in range(_TRIES):
        value = (start - number if down else start + number) * step
        yield int(value) if float(value).is_integer() else value


def _both(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """A schema that holds to two, where a keyword has one obvious way to do so."""
    merged = {**one, **other}
    for word in one.keys() & other.keys():
        first, second = one[word], other[word]
        match word:
            case "properties" | "patternProperties" | "dependentRequired" | "$defs":
                merged[word] = {**first, **second}
                if word == "properties":
                    merged[word] |= {
                        name: {"allOf": [first[name], second[name]]} for name in first.keys() & second.keys()
                    }
            case "required":
                merged[word] = [*dict.fromkeys([*first, *second])]
            case "minimum" | "exclusiveMinimum" | "minLength" | "minItems" | "minProperties":
                merged[word] = max(first, second)
            case "maximum" | "exclusiveMaximum" | "maxLength" | "maxItems" | "maxProperties":
                merged[word] = min(first, second)
            case "enum":
                merged[word] = [each for each in first if each in second]
            case "allOf":
                merged[word] = [*first, *second]
    return merged
