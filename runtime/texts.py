"""Texts as a wire carries them: Python's may hold half a surrogate pair, which UTF-8 has no bytes for."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import unicodedata
from typing import Any

from pydantic_core import PydanticSerializationError, from_json, to_json, to_jsonable_python

#: So deep may JSON be nested that pydantic reads; it writes 50 levels more.
READ_DEEP = 200
#: Kept, because making it takes longer than writing a small input.
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def whole(value: Any) -> Any:
    """A JSON value whose texts can be encoded: halves of surrogate pairs are joined, a lone one is U+FFFD."""
    if isinstance(value, str):
        if value.isascii():
            return value
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, dict):
        return {whole(name): whole(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [whole(part) for part in value]
    return value


def encoded(value: Any) -> bytes:
    """A value as UTF-8 JSON, as all that travels is written; halves of surrogate pairs as `whole` has them.

    Raises:
        PydanticSerializationError: something in it is not JSON, or it is nested so deep that nobody can read it.
    """
    try:
        data = to_json(value, inf_nan_mode="null")
    except PydanticSerializationError as error:
        # Looked for only here: nearly nothing has any, and looking costs more than writing.
        if "surrogates not allowed" not in str(error):
            raise
        data = to_json(whole(jsonable(value)), inf_nan_mode="null")
    if data.count(b"[") + data.count(b"{") > READ_DEEP:
        _check_depth(data)
    return data


def _check_depth(data: bytes) -> None:
    """What is written may be deeper than what is read, and nobody would be told of an outcome."""
    try:
        from_json(data)
    except ValueError:
        raise PydanticSerializationError(f"it is nested deeper than {READ_DEEP} levels") from None


def jsonable(value: Any) -> Any:
    """A value as plain JSON data.

    Raises:
        ValueError: something in it is not JSON.
    """
    try:
        return to_jsonable_python(value)
    except UnicodeEncodeError:
        # Of keys it takes no halves at all.
        return to_jsonable_python(whole(value))


def plain(data: Any) -> Any:
    """The same as others read JSON: what it has not is text, and a number that is none is null."""
    return json.loads(json.dumps(data, default=str), parse_constant=lambda _: None)


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON for people and programs, as `plain` has it: anybody may have sent NaN or 1e400."""
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent, default=str, allow_nan=False)
    except ValueError:
        # Looked for only here: nearly nothing has any.
        return json.dumps(plain(value), ensure_ascii=False, indent=indent)


def digest_of(data: Any) -> str:
    """SHA-256, in hex, of JSON data: with sorted keys, without white space, and in ASCII."""
    return hashlib.sha256(_CANONICAL.encode(data).encode("utf-8", "surrogatepass")).hexdigest()


def printable(text: str, keep: str = "\n\t") -> str:
    """The text without what could move a terminal's cursor: anybody may have sent it."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else repr(each)[1:-1] for each in text)


def one_line(text: str, characters: int) -> str:
    """The text as one printable line, cut where it takes more room than so many characters in a terminal."""
    # What is cut off anyway need not be looked at: nobody knows how long it is.
    line = printable(" ".join(text[: 4 * characters].split()))
    if line.isascii():
        return line if len(line) <= characters else f"{line[: characters - 1]}…"
    # Some signs are as wide as two.
    ends = list(itertools.accumulate(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in line))
    if not ends or ends[-1] <= characters:
        return line
    return f"{line[: bisect.bisect_right(ends, characters - 1)]}…"
