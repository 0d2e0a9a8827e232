"""What LLM providers refuse in the tools that they are offered."""

from __future__ import annotations

import base64
import re
from typing import Any

import jsonschema_rs

Json = dict[str, Any]
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
#: What one or the other provider refuses, at the top of a tool's schema and anywhere in it.
NOT_AT_THE_TOP = ("oneOf", "anyOf", "allOf", "enum", "not", "$ref")
UNSUPPORTED = ("patternProperties", "propertyNames", "dependentSchemas", "unevaluatedProperties", "if", "then")


class RequestError(Exception):
    """The real API would answer this request with an error."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def require(condition: object, message: str, *, status: int = 400) -> None:
    if not condition:
        raise RequestError(message, status=status)


def check_schema(schema: Json, where: str) -> None:
    """As strict as the stricter of the two providers in each respect."""
    require(schema.get("type") == "object", f"{where}: schema must be of type 'object'")
    require("properties" in schema, f"{where}: In context=(), object schema missing properties")
    for keyword in NOT_AT_THE_TOP:
        require(keyword not in schema, f"{where}: does not support {keyword} at the top level")
    for name in schema["properties"]:
        require(NAME.fullmatch(name), f"{where}: Property keys should match pattern: {name!r}")
    for name in schema.get("required", ()):
        require(name in schema["properties"], f"{where}: required names {name!r}, which is no property")
    try:
        jsonschema_rs.Draft202012Validator(schema)
    except Exception as error:
        raise RequestError(f"{where}: JSON schema is invalid: {error}") from None
    check_part(schema, where)


def check_part(schema: Any, where: str) -> None:
    """One schema, and all within it."""
    if not isinstance(schema, dict):
        return
    for keyword in UNSUPPORTED:
        require(keyword not in schema, f"{where}: {keyword} is not permitted")
    kinds = schema.get("type", ())
    is_list = "array" in ([kinds] if isinstance(kinds, str) else kinds)
    require(not is_list or isinstance(schema.get("items"), dict), f"{where}: array schema missing items")
    parts = [*(schema.get(each, {}).values() for each in ("properties", "$defs", "definitions"))]
    parts += [schema.get(each, ()) for each in ("anyOf", "oneOf", "allOf", "prefixItems")]
    parts += [[schema.get(each) for each in ("items", "additionalProperties", "not")]]
    for each in (one for some in parts for one in some):
        check_part(each, where)


#: What both hold a model to.
STRICT = {"type", "description", "title", "enum", "const", "anyOf", "items", "properties"}


def check_strict(schema: Any, where: str, *, at_the_top: bool = True) -> None:
    """The format of an answer, as strict as the stricter of the two providers in each respect."""
    require(isinstance(schema, dict) and schema, f"{where}: a schema of anything is not permitted")
    require(not at_the_top or schema.get("type") == "object", f"{where}: schema must be of type 'object'")
    if "anyOf" in schema:
        for part in schema["anyOf"]:
            check_strict(part, where, at_the_top=False)
        return
    require({"type", "enum", "const"} & schema.keys(), f"{where}: schema must have a 'type' key")
    known = STRICT | ({"required", "additionalProperties"} if "properties" in schema else set())
    require(schema.keys() <= known, f"{where}: {sorted(schema.keys() - known)} is not permitted")
    kinds = schema.get("type", ())
    if "object" in ([kinds] if isinstance(kinds, str) else kinds):
        properties = schema.get("properties", {})
        require(schema.get("additionalProperties") is False, f"{where}: 'additionalProperties' must be false")
        require(set(schema.get("required", ())) == set(properties), f"{where}: 'required' must name every key")
        for part in properties.values():
            check_strict(part, where, at_the_top=False)
    if "array" in ([kinds] if isinstance(kinds, str) else kinds):
        check_strict(schema.get("items"), where, at_the_top=False)


def check_attachment(part: Json, kinds: set[str]) -> None:
    """A part of a message's content."""
    kind = part.get("type")
    require(kind in kinds, f"unexpected content part {kind!r}")
    match part:
        case {"type": "text" | "input_text", "text": text}:
            require(text.strip(), "text content must be non-empty")
        case {"type": "image" | "document", "source": {"type": "base64", "media_type": media, "data": data}}:
            require(media in ("image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf"), media)
            _check_base64(data)
        case {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": data}}:
            require(data.strip(), "document: empty")
        case {"type": "image" | "document", "source": {"type": "url", "url": url}}:
            require(url.startswith("https://"), "only https urls are supported")
        case {"type": "image_url", "image_url": {"url": url}} | {"type": "input_image", "image_url": url}:
            _check_url(url)
        case {"type": "file", "file": {"filename": _, "file_data": url}}:
            _check_url(url)
        case {"type": "input_file", "file_url": url} | {"type": "input_file", "filename": _, "file_data": url}:
            _check_url(url)
        case _:
            raise RequestError(f"a part of kind {kind!r} is malformed")


def _check_url(url: str) -> None:
    head, comma, data = url.partition(",")
    require(url.startswith("https://") or (comma and head.startswith("data:")), f"invalid url {head!r}")
    if comma and head.startswith("data:"):
        _check_base64(data)


def _check_base64(data: str) -> None:
    try:
        base64.b64decode(data, validate=True)
    except ValueError:
        raise RequestError("invalid base64 data") from None
