"""References to the results of earlier calls, so that data need not go through the model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

from squadron.runtime.errors import SquadronError

#: Names (of ids, of an object's keys) that an error or a note lists.
MAX_LISTED = 20

_NO_ITEM = object()
_INDEX = re.compile("0|[1-9][0-9]*")


class BadReferenceError(SquadronError):
    """A `$from` or `$item` leads nowhere; the message says what there is instead."""


def nonce_of(run: str) -> str:
    """What stands in each id and fence of a run, so that no text from outside can name them: it can't know it."""
    return hashlib.sha256(f"nonce {run}".encode()).hexdigest()[:6]


def call_id(run: str, round: int, position: int) -> str:
    """The id of the call at `position` (from 0) of a round."""
    return f"r{round}c{position + 1}-{nonce_of(run)}"


def task_id(run: str, call: str, index: int) -> str:
    """The id of the task at `index` (from 0) of a call: the same in each attempt, so that it is sent once."""
    return f"{run}-{call}-{index}"


def at_pointer(value: Any, pointer: str) -> Any:
    """The part of `value` that a JSON pointer (RFC 6901) names; the empty pointer is all of it.

    Raises:
        BadReferenceError: there is no such part.
    """
    if pointer and not pointer.startswith("/"):
        raise BadReferenceError(f"the pointer {pointer!r} must be empty or begin with '/'")
    for raw in pointer.split("/")[1:]:
        token = raw.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and token in value:
            value = value[token]
        elif isinstance(value, list) and _INDEX.fullmatch(token) and int(token) < len(value):
            value = value[int(token)]
        else:
            raise BadReferenceError(f"{pointer!r} leads nowhere: at {token!r} there is {describe(value)}")
    return value


def describe(value: Any) -> str:
    """The shape of a value in a few words."""
    if isinstance(value, dict):
        return f"an object with the keys {listed(value)}" if value else "an empty object"
    if isinstance(value, list):
        inside = f", the first is {describe(value[0])}" if value and isinstance(value[0], dict) else ""
        return f"a list of {len(value)} items{inside}"
    return f"a text of {len(value)} characters" if isinstance(value, str) else json.dumps(value)


def listed(names: Iterable[str]) -> str:
    """The first of many names, for a message."""
    names = list(names)
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(repr(name) for name in names[:MAX_LISTED]) + more


def as_reference(template: Any) -> tuple[str, Any]:
    """(`$from` or `$item`, its value), or ("", None) for anything else."""
    if isinstance(template, dict) and len(template) == 1:
        key, value = next(iter(template.items()))
        if key in ("$from", "$item"):
            return key, value
    return "", None


class Results:
    """What the calls of a run came to by their ids, and why the others came to nothing.

    A reference may be an object, or where a schema wants a text, that object written as text. A text counts only
    if it names a call by the id that has the run's nonce: what the model quotes from somewhere can't.
    """

    def __init__(self, run: str) -> None:
        self._nonce = nonce_of(run)
        self.values: dict[str, Any] = {}
        self._failures: dict[str, str] = {}
        #: What the provider called a call; the newest of one name counts.
        self._aliases: dict[str, str] = {}

    def name(self, id: str, alias: str) -> None:
        """Models and plans may refer to a call by the id that they gave it, too."""
        self._aliases[alias] = id

    def keep(self, id: str, value: Any) -> None:
        """The call ended with a value."""
        self.values[id] = value

    def fail(self, id: str, why: str) -> None:
        """The call ended without one."""
        self._failures[id] = why

    def __contains__(self, id: str) -> bool:
        return id in self.values or id in self._failures

    def id_of(self, name: str) -> str:
        """The id of a call that is named by it, or by its provider's id."""
        return name if name in self else self._aliases.get(name, name)

    def fill(self, template: Any, *, item: Any = _NO_ITEM) -> Any:
        """The template with every reference replaced by what it stands for.

        What is put in is data: it is not searched for references of its own.

        Raises:
            BadReferenceError: a reference leads nowhere.
        """
        key, value = as_reference(self._unquoted(template))
        if key == "$from":
            return self._result(value)
        if key == "$item":
            if item is _NO_ITEM:
                raise BadReferenceError('"$item" has a meaning only in the arguments of for_each')
            return at_pointer(item, str(value).removeprefix("#"))
        if isinstance(template, dict):
            return {name: self.fill(part, item=item) for name, part in template.items()}
        if isinstance(template, list):
            return [self.fill(part, item=item) for part in template]
        return template

    def _unquoted(self, template: Any) -> Any:
        """A reference that is written as text, as an object."""
        if not isinstance(template, str) or '"$' not in template or not template.lstrip().startswith("{"):
            return template
        try:
            written = json.loads(template)
        except ValueError:
            return template
        key, value = as_reference(written)
        # A `$item` is the model's own word: items are data, and data is not searched.
        ours = key == "$item" or (key == "$from" and str(value).partition("#")[0].endswith(f"-{self._nonce}"))
        return written if ours else template

    def _result(self, reference: Any) -> Any:
        name, _, pointer = str(reference).partition("#")
        id = self.id_of(name)
        if id in self.values:
            return at_pointer(self.values[id], pointer)
        if id in self._failures:
            raise BadReferenceError(f"call {name!r} has no result: {self._failures[id]}")
        known = f"known are {listed(self.values)}" if self.values else "no call has a result yet"
        raise BadReferenceError(f"there is no result of a call {name!r}: {known}")
