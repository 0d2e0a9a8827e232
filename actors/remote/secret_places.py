"""Secrets of servers elsewhere: what is said of a server is seen by many, so it names places, and holds none."""

from __future__ import annotations

import re

from squadron.runtime.errors import ConfigError, InvalidInputError
from squadron.runtime.redact import names_secret, scrub
from squadron.runtime.secret import Secret, is_reference

#: As hosts of MCP servers write it: `${NAME}`, or `${NAME:-default}`.
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
_HINT = "write ${NAME}, env:NAME, file:PATH or call:MODULE:FUNCTION: the secret is looked up where it is needed"


def looked_up(text: str) -> str:
    """A text with what stands at the places that it names.

    Raises:
        ConfigError: something can't be had there; names the place.
    """
    if is_reference(text):
        return Secret(text).value()

    def value(found: re.Match[str]) -> str:
        name, default = found[1], found[2]
        try:
            return Secret(f"env:{name}").value()
        except ConfigError:
            if default is None:
                raise
            return default

    return _VARIABLE.sub(value, text)


def refuse_secret(field: str, text: str) -> None:
    """Refuse a secret that is given as it is: `field` is where, as `headers.Authorization`.

    Raises:
        InvalidInputError: it is one; does not show it.
    """
    if not text or is_reference(text):
        return
    name = field.rpartition(".")[2] if "." in field else ""
    # What stands beside a place that is named may be one all the same.
    beside = _VARIABLE.sub("", text)
    is_named = (names_secret(name) or name.lower() in ("authorization", "cookie")) and beside == text
    if is_named or scrub(beside) != beside:
        raise InvalidInputError(f"{field} is a secret as it is, which all would see", field=field, hint=_HINT)
