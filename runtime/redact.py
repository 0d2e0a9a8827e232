"""The last line for secrets: known ones, and what looks like one, are struck out of what is stored or shown."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

#: What stands where a secret stood.
STRUCK = "[secret]"
#: Variables with names like these hold secrets.
_VARIABLE = re.compile(r"(^|_)(API_KEY|ADMIN_KEY|ACCESS_KEY|SECRET_KEY|TOKEN|SECRET|PASSWORD)$")
#: Shorter ones are found in ordinary words.
_LEAST_CHARS = 6
_SHAPES = re.compile(
    r"(?P<before>\b(?:Bearer|Basic) +|\b[a-z][a-z0-9+.-]*://(?=[^\s/@]*@))(?P<word>[^\s'\"\\@]+)"
    r"|\bsk-[A-Za-z0-9_-]{6,}"
    r"|\bS[ACNOUX][A-Z2-7]{56}\b"  # the seed of an nkey
)
_known: set[str] = set()


def keep_secret(*values: str) -> None:
    """Strike these out from now on, in this process: secrets that did not come from the environment."""
    _known.update(value for value in values if len(value) >= _LEAST_CHARS)


def scrub(text: str) -> str:
    """The text without the secrets of this process, and without what has the shape of one."""
    for secret in sorted(_secrets(), key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, STRUCK)
    return _SHAPES.sub(lambda found: f"{found['before'] or ''}{STRUCK}", text)


def scrub_all(value: Any) -> Any:
    """A JSON value with every text in it scrubbed."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, dict):
        return {name: scrub_all(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [scrub_all(part) for part in value]
    return value


def _secrets() -> Iterator[str]:
    values = {value.strip() for name, value in os.environ.items() if _VARIABLE.search(name)} | _known
    values |= {word for url in os.environ.get("NATS_URL", "").split(",") for word in _credentials(url.strip())}
    for value in values:
        if len(value) >= _LEAST_CHARS:
            # As it is, as JSON and `repr` write it.
            yield from {value, json.dumps(value)[1:-1], repr(value)[1:-1]}


def _credentials(url: str) -> Iterator[str]:
    user, colon, password = urlsplit(url).netloc.rpartition("@")[0].partition(":")
    secret = password if colon else user
    yield from (secret, unquote(secret))
