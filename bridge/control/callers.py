"""Who calls the bridge, and with what."""

from __future__ import annotations

import json
from typing import Any

from squadron.runtime.errors import InvalidMessageError
from squadron.runtime.ports.bus import Note
from squadron.runtime.trust.guard import Guard, anybody
from squadron.runtime.trust.may_say import KEEPERS, only, only_agent

#: Calls that change nothing: whoever signs may look.
_LOOKS = frozenset(("ping", "status", "metrics", "nodes", "search", "lessons", "track"))
#: What anybody may say of how a topic served them: no source can say much.
_ANYBODYS = _LOOKS | {"prefer"}
_OFFER = "offer"


def offering(agent: str) -> str:
    """The verb by which an agent tells what it serves now, with its name: a server lets no other say it."""
    return f"{_OFFER}.{agent}"


def arguments_of(note: Note, verb: str) -> dict[str, Any]:
    """The arguments of a call, whoever makes it.

    Raises:
        InvalidMessageError: these are no arguments.
        ValueError, RecursionError: that is no JSON.
    """
    arguments = json.loads(note.data or b"{}")
    if not isinstance(arguments, dict):
        raise InvalidMessageError(f"{verb}: not a JSON object")
    if verb.startswith(offering("")):
        arguments["agent"] = verb.removeprefix(offering(""))
    elif verb == _OFFER:
        raise InvalidMessageError(f"{verb}: the verb says whose it is", hint=offering("AGENT"))
    return arguments


async def admit(note: Note, verb: str, arguments: dict[str, Any], guard: Guard | None) -> None:
    """Hear a call only of who may make it; if it is known who signed it, `by` says so.

    Raises:
        UntrustedError: who calls may not.
    """
    said = str(arguments.get("by", ""))
    source = said
    if guard is not None:
        may = anybody if verb in _ANYBODYS else only(*KEEPERS)
        if verb.startswith(offering("")):
            # What an agent serves it says itself; the bridge lets it offer no more than it could before.
            may = only_agent(str(arguments.get("agent", "")))
        signed = await guard.admit("control", note.subject, note.data, note.headers, at=None, may=may)
        if signed is not None:
            source = signed.by.name
            arguments["by"] = f"{source}: {said}"
    if verb == "prefer":
        # Who teaches: who signed the call, where that is known, and else whoever they say they are.
        arguments["source"] = source
