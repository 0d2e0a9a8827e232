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
#: How the place begins where a secret is kept instead of the variable, see `runtime.secret`; it is none itself.
PLACES = ("env:", "file:", "call:")
#: Shorter ones are found in ordinary words.
_LEAST_CHARS = 6


def at_word(start: str) -> str:
    """A pattern for where a word begins with `start`, itself one of fixed width.

    Texts come rendered as well: in JSON and by `repr` a word may stand after an escape, on a terminal after a
    colour. These end in a letter or a digit, so that there is no border of words.
    """
    before = (r"\b", r"\\[bfnrt]", r"\\u[0-9A-Fa-f]{4}", r"\\x[0-9A-Fa-f]{2}", r"\x1b\[[0-9]m", r"\x1b\[[0-9]{2}m")
    return start + "(?:" + "|".join(f"(?<={each}{start})" for each in before) + ")"


#: What looks like a secret: a mark without which there is none, as looking for that is cheap, and the whole.
_SHAPES = (
    ("://", re.compile(r"(?P<before>://)(?=[^\s/@]*@)[^\s'\"\\@]+")),
    ("Bearer ", re.compile(rf"(?P<before>{at_word('Bearer')} +)[^\s'\"\\@]+")),
    ("Basic ", re.compile(rf"(?P<before>{at_word('Basic')} +)[^\s'\"\\@]+")),
    ("sk-", re.compile(rf"(?P<before>){at_word('sk-')}[A-Za-z0-9_-]{{6,}}")),
    ("S", re.compile(rf"(?P<before>){at_word('S[ACNOUX]')}[A-Z2-7]{{56}}\b")),  # the seed of an nkey
)
_known: set[str] = set()


def keep_secret(*values: str) -> None:
    """Strike these out from now on, in this process: secrets that did not come from the environment."""
    _known.update(value for value in values if len(value) >= _LEAST_CHARS)


def keep_address(*urls: str) -> None:
    """Strike the credentials in these addresses out from now on, in this process."""
    keep_secret(*(word for url in urls for word in _credentials(url)))


def names_secret(name: str) -> bool:
    """Whether what has this name is a secret, as `OPENAI_API_KEY` is; not so an address that may hold one."""
    return _kind(name) == "secret"


def secrets_of_process() -> set[str]:
    """All that is known as a secret in this process, in the ways in which it may be written."""
    return set(_secrets())


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
    if value.strip().startswith(PLACES):
        return ()
    values = {value.strip()}
    if is_address:
        values = {word for url in value.split(",") for word in _credentials(url.strip())}
    # As it is, as JSON and `repr` write it.
    forms = (
        {each, json.dumps(each)[1:-1], json.dumps(each, ensure_ascii=False)[1:-1], repr(each)[1:-1]}
        for each in values
        if len(each) >= _LEAST_CHARS
    )
    return tuple(set[str]().union(*forms))


def _credentials(url: str) -> Iterator[str]:
    try:
        user, colon, password = urlsplit(url).netloc.rpartition("@")[0].partition(":")
    except ValueError:  # that is no address
        return
    secret = password if colon else user
    yield from (secret, unquote(secret))
