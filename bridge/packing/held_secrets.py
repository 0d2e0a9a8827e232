"""What must not travel with code: who may read the registry can read all that an agent's class takes along."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from squadron.runtime.redact import names_secret, secrets_of_process
from squadron.runtime.secret import Secret, is_reference

#: A shorter value of a variable may stand in any code by chance, as `postgres` does.
_LEAST_KNOWN = 12
#: A shorter text is no secret whatever its name is.
_LEAST_NAMED = 6
#: How deep plain containers are looked into: settings are rarely nested deeper.
_DEEPEST = 4
#: What has the look of a secret so clearly that it stands nowhere by chance, and what it is. Stricter than what is
#: struck out of texts (`redact`): there a mistake costs a word, here it stops a deployment.
_SHAPES: Mapping[str, re.Pattern[bytes]] = {
    "a private key": re.compile(rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{20}"),
    "a key of an LLM provider": re.compile(rb"\bsk-(?=[\w-]{0,200}[0-9])[A-Za-z0-9_-]{20,}"),
    "an access key of AWS": re.compile(rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a token of GitHub": re.compile(rb"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40,})"),
    "a token of Slack": re.compile(rb"\bxox[abeprs]-[A-Za-z0-9-]{20,}"),
    "the seed of an nkey": re.compile(rb"\bS[ACNOUX][A-Z2-7]{56}\b"),
    "a signed token (JWT)": re.compile(rb"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{20,}"),
}
#: An address with a password that is none of those that stand for one in examples.
_ADDRESS = re.compile(rb"\b[a-z][a-z0-9+.-]*://[^\s/@:'\"{}<>%$]*:(?P<password>[^\s/@'\"{}<>$]{4,200})@[\w\[]")
_EXAMPLES = frozenset(
    {b"password", b"passwd", b"pass", b"secret", b"token", b"pw", b"xxxx", b"changeme", b"guest"}
)
#: Such names are given to words that mark the end of a text as well, which have no digits.
_TOKEN = re.compile("token", re.IGNORECASE)


class HeldSecretError(Exception):
    """Something that is to travel holds a secret."""


def check_held(held: Mapping[str, Any]) -> None:
    """Look at what something that goes by value holds, by its names.

    Raises:
        HeldSecretError: a name says that its text is a secret, or a value says so itself.
    """
    for name, value in _named(held, 0):
        if isinstance(value, str) and _is_secret(name, value):
            raise HeldSecretError(f"{name} has the name of a secret and holds a text")
        if isinstance(value, Secret) and value and not value.place:
            raise HeldSecretError(f"{name} is a Secret that holds the value itself")
        if callable(getattr(type(value), "get_secret_value", None)) and value.get_secret_value():
            raise HeldSecretError(f"{name} is a {type(value).__name__} that holds a value")


def _named(held: Mapping[Any, Any], depth: int) -> Iterator[tuple[str, Any]]:
    for name, value in list(held.items()):
        yield str(name), value
        if depth < _DEEPEST and not str(name).startswith("__"):
            parts = value if type(value) in (list, tuple) else (value,)
            for part in parts:
                if type(part) is dict:
                    yield from _named(part, depth + 1)


def _is_secret(name: str, value: str) -> bool:
    if not names_secret(name) or len(value) < _LEAST_NAMED or is_reference(value) or names_secret(value):
        return False
    if any(each.isspace() for each in value):
        return False  # words for people
    return not _TOKEN.search(name) or any(each.isdigit() for each in value)


def check_bytes(blob: bytes) -> None:
    """Look at code that is to travel, constants and all.

    Raises:
        HeldSecretError: it holds what this process knows as a secret, or what clearly looks like one.
    """
    if any(
        len(secret) >= _LEAST_KNOWN and secret.encode("utf-8", "replace") in blob
        for secret in secrets_of_process()
    ):
        raise HeldSecretError("it holds what is a secret in the environment of this process")
    for what, shape in _SHAPES.items():
        if shape.search(blob):
            raise HeldSecretError(f"it holds what looks like {what}")
    if any(found["password"].lower() not in _EXAMPLES for found in _ADDRESS.finditer(blob)):
        raise HeldSecretError("it holds an address with a password")
