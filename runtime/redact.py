"""The last line for secrets: known ones, and what looks like one, are struck out of what is stored or shown."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit

#: What stands where a secret stood.
STRUCK = "[secret]"
#: Variables with names like these hold secrets, or addresses in which there may be some.
_VARIABLE = re.compile(
    r"(?:^|_)(?:(?:API|ADMIN|ACCESS|SECRET|PRIVATE|SIGNING|MASTER)_?KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE"
    r"|(?P<address>URL|URI|DSN|PROXY))$",
    re.IGNORECASE,
)
#: Shorter ones are found in ordinary words.
_LEAST_CHARS = 6
#: What looks like a secret: a mark without which there is none, as looking for that is cheap, and the whole.
_SHAPES = (
    ("://", re.compile(r"(?P<before>\b[a-z][a-z0-9+.-]*://)(?=[^\s/@]*@)[^\s'\"\\@]+")),
    ("Bearer ", re.compile(r"(?P<before>\bBearer +)[^\s'\"\\@]+")),
    ("Basic ", re.compile(r"(?P<before>\bBasic +)[^\s'\"\\@]+")),
    ("sk-", re.compile(r"(?P<before>\b)sk-[A-Za-z0-9_-]{6,}")),
    ("S", re.compile(r"(?P<before>\b)S[ACNOUX][A-Z2-7]{56}\b")),  # the seed of an nkey
)
_known: set[str] = set()


def keep_secret(*values: str) -> None:
    """Strike these out from now on, in this process: secrets that did not come from the environment."""
    _known.update(value for value in values if len(value) >= _LEAST_CHARS)


def scrub(text: str, secrets: Iterable[str] | None = None) -> str:
    """The text without the secrets of this process, and without what has the shape of one.

    Args:
        secrets: those of `secrets_of_process`, if they were looked up before, as for many texts.
    """
    found = {secret for secret in (_secrets() if secrets is None else secrets) if secret in text}
    for secret in sorted(found, key=len, reverse=True):
        text = text.replace(secret, STRUCK)
    for mark, shape in _SHAPES:
        if mark in text:
            # No template: reading one imports, which an interpreter that ends refuses.
            text = shape.sub(_strike, text)
    return text


def secrets_of_process() -> tuple[str, ...]:
    """The secrets that this process has now, in each form in which one may be written."""
    return tuple(_secrets())


def _strike(found: re.Match[str]) -> str:
    return f"{found['before']}{STRUCK}"


def scrub_all(value: Any) -> Any:
    """A JSON value with every text in it scrubbed, also the names in it."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, dict):
        return {scrub_all(name): scrub_all(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [scrub_all(part) for part in value]
    return value


def _secrets() -> Iterator[str]:
    # What depends on names and values alone is remembered: this is done for each line of a log.
    for name in os.environ:
        if kind := _kind(name):
            yield from _held(os.environ.get(name, ""), kind == "address")
    for value in tuple(_known):
        yield from _held(value, False)


@lru_cache(4096)
def _kind(name: str) -> str:
    found = _VARIABLE.search(name)
    return "" if found is None else "address" if found["address"] else "secret"


@lru_cache(4096)
def _held(value: str, is_address: bool) -> tuple[str, ...]:
    values = {value.strip()}
    if is_address:
        values = {word for url in value.split(",") for word in _credentials(url.strip())}
    # As it is, as JSON and `repr` write it.
    forms = ({each, json.dumps(each)[1:-1], repr(each)[1:-1]} for each in values if len(each) >= _LEAST_CHARS)
    return tuple(set[str]().union(*forms))


def _credentials(url: str) -> Iterator[str]:
    try:
        user, colon, password = urlsplit(url).netloc.rpartition("@")[0].partition(":")
    except ValueError:  # that is no address
        return
    secret = password if colon else user
    yield from (secret, unquote(secret))
