"""The bytes of a message that was given up, as fields of its letter."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

#: Longest id that is kept of a message that was cut, or that nobody could read, in characters.
LONGEST_ID = 256


def fields_of(data: bytes, most: int | None = None) -> dict[str, Any]:
    """Bytes as fields of a letter; with `most` only so many of them, and how many there were."""
    packed: dict[str, Any] = {} if most is None else {"messageBytes": len(data)}
    try:
        return packed | {"message": data.decode()[:most]}
    except UnicodeDecodeError:
        return packed | {"messageBase64": base64.b64encode(data[:most]).decode()}


def bytes_in(content: Mapping[str, Any]) -> bytes:
    """The bytes in the content of a letter; of one that was cut, the beginning."""
    if "messageBase64" in content:
        return base64.b64decode(content["messageBase64"])
    text: str = content["message"]
    return text.encode()


def id_in(data: bytes) -> str:
    """The id in a message that we can't read as a whole; empty if there is none to speak of."""
    try:
        id = json.loads(data)["id"]
        return id if len(id.encode()) <= LONGEST_ID else ""
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return ""
