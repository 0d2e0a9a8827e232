"""What LLM providers refuse in the tools that they are offered."""

from __future__ import annotations

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
