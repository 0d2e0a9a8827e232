"""A secret, by the place where it is kept: what is stored and what travels is the place, never what is there."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from squadron.runtime.errors import ConfigError
from squadron.runtime.redact import PLACES, STRUCK, keep_secret

ENV, FILE, CALL = PLACES
#: A file of more bytes holds no secret: somebody named the wrong one. Certificates' chains have some 10 KB.
MOST_BYTES: Final = 64 * 1024


def is_reference(text: str) -> bool:
    """Whether a text names a place where a secret is, instead of being one."""
    return text.startswith(PLACES)


class Secret:
    """A secret, looked up anew each time it is used, so that one that was changed is used from then on.

    Args:
        text: `env:NAME`, a variable of the process that uses it; `file:PATH`, a file's content without the line
            break at its end; `call:MODULE:FUNCTION`, what a function of yours returns, which is called in the
            event loop or a thread, each time, so it has to be quick and remember; anything else is the secret.

    It is shown as the place. A secret that was given itself is not shown, and does not travel.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text

    @property
    def place(self) -> str:
        """Where it is; the empty string if it was given itself."""
        return self._text if is_reference(self._text) else ""

    def value(self) -> str:
        """What it is now; struck out of whatever this process logs and stores from now on.

        Raises:
            ConfigError: it can't be had; names the place.
        """
        value = resolved(self._text)
        keep_secret(value)
        return value

    def value_given(self) -> str:
        """The secret if it was given itself; the empty string if it is at a place."""
        return "" if self.place else self._text

    def __bool__(self) -> bool:
        return self._text != ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return f"Secret({self.place or (STRUCK if self else '')})"

    def __reduce__(self) -> Any:
        if self and not self.place:
            raise ConfigError("a secret that was given as it is does not travel", hint=HINT)
        return Secret, (self._text,)


#: How to give a secret so that it may travel.
HINT = "give the place where it is: env:NAME, file:PATH or call:MODULE:FUNCTION"


def resolved(text: str) -> str:
    """What is at the place that a text names; the text itself if it names none.

    Raises:
        ConfigError: nothing can be had there; says why, and never shows anything but the place.
    """
    read = next((read for mark, read in _READERS.items() if text.startswith(mark)), None)
    if read is None:
        return text
    value = read(text.partition(":")[2])
    if not value:
        raise ConfigError(f"{text} is empty", hint="put the secret there, or name another place")
    return value


def _variable(name: str) -> str:
    if name not in os.environ:
        raise ConfigError(
            f"env:{name}: this process has no such variable",
            hint=f"set {name} where it starts; agents on the local cluster need SQUADRON_PASS_ENV={name}, too",
        )
    return os.environ[name].strip("\r\n")


def _content(path: str) -> str:
    try:
        with Path(path).expanduser().open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ConfigError(f"file:{path} is larger than {MOST_BYTES:,} bytes", hint="name the secret's file")
        return data.decode().rstrip("\r\n")
    except OSError as error:
        raise ConfigError(
            f"file:{path} can't be read: {error.strerror}", hint="it has to be there on each machine that uses it"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"file:{path} is no text", hint="name the secret's file") from None


def _told(path: str) -> str:
    module, _, name = path.partition(":")
    try:
        function: Any = getattr(importlib.import_module(module), name)
        value = function()
    except Exception as error:
        # Its words may hold the secret.
        raise ConfigError(
            f"call:{path} failed: {type(error).__name__}",
            hint="it has to be importable where it is used, take no arguments, and return the secret as text",
        ) from None
    if not isinstance(value, str):
        raise ConfigError(f"call:{path} returned a {type(value).__name__}", hint="return the secret as text")
    return value


_READERS: dict[str, Callable[[str], str]] = {ENV: _variable, FILE: _content, CALL: _told}
