"""The text of a nats-server's configuration with the two accounts: for a server of your own, and for tests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from squadron.bridge.auth.roles import API_PREFIX, Rights
from squadron.runtime.wire.subjects import ROOT

#: The account of the streams and the bridge, and that of everybody else.
STREAMS, AGENTS = "SQ", "AGENTS"

#: What is published in `AGENTS` and goes to the streams, or to the bridge. Not `audit`: nobody but the archivist
#: writes the trail.
_KINDS = (
    "task",
    "query",
    "ordered",
    "ticket",
    "lite",
    "life",
    "own",
    "run",
    "registry",
    "dead",
    "durable",
    "status",
)
_SUBJECTS = (*(f"{ROOT}.*.{kind}.>" for kind in (*_KINDS, "filed", "bridge")), f"{ROOT}.*.forget")
_API = "$JS.API.>"
_SERVICES = (*_SUBJECTS, "$O.>", "$JS.ACK.>")
#: What the server and the bridge tell in `SQ` and is heard in `AGENTS`.
_TOLD = tuple(f"{ROOT}.*.{kind}.>" for kind in ("live", "told", "event", "result", "stream"))


@dataclass(frozen=True, slots=True)
class Login:
    """A user of a static configuration.

    Attributes:
        rights: what it may; None for the bridge, whose account is that of the streams.
        password: in the clear, or as `nats server passwd` hashes it.
        nkey: its public key, instead of a password; `name` stands in no configuration then.
    """

    name: str
    rights: Rights | None
    password: str = field(default="", repr=False)
    nkey: str = ""


def accounts(logins: Iterable[Login]) -> str:
    """The `accounts` of a server: two of them, joined by imports, and their users.

    It is one block, to be included in a configuration that enables JetStream; nothing else in it may name users.
    """
    users: dict[str, list[dict[str, Any]]] = {STREAMS: [], AGENTS: []}
    for login in logins:
        who = {"nkey": login.nkey} if login.nkey else {"user": login.name, "password": login.password}
        if login.rights is None:
            users[STREAMS].append(who)
        else:
            users[AGENTS].append({**who, "permissions": login.rights.permissions()})
    exported, imported = list[dict[str, Any]](), list[dict[str, Any]]()
    for kind, subject, many in _joined():
        exported.append({kind: subject, "accounts": [AGENTS], **({"response_type": "stream"} if many else {})})
        local = {"to": f"{API_PREFIX}.>"} if subject == _API else {}
        imported.append({kind: {"account": STREAMS, "subject": subject}, **local})
    both = {
        STREAMS: {"jetstream": "enabled", "users": users[STREAMS], "exports": exported},
        AGENTS: {"users": users[AGENTS], "imports": imported},
    }
    # JSON is a part of the language of these configurations.
    return f"accounts: {json.dumps(both, indent=2)}\n"


def claims(streams_account: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What joins the accounts, as their JWTs have it: `exports` of that of the streams, `imports` of the other.

    Args:
        streams_account: the public key of the account of the streams.
    """
    exports = [
        {"name": subject, "subject": subject, "type": kind, **({"response_type": "Stream"} if many else {})}
        for kind, subject, many in _joined()
    ]
    imports = [
        {
            "name": subject,
            "subject": subject,
            "account": streams_account,
            "type": kind,
            **({"local_subject": f"{API_PREFIX}.>"} if subject == _API else {}),
        }
        for kind, subject, _ in _joined()
    ]
    return {"exports": exports}, {"imports": imports}


def _joined() -> Iterator[tuple[str, str, bool]]:
    """Kind and subject of what is joined, and whether a call may have more than one answer."""
    yield "service", _API, True
    for each in _SERVICES:
        yield "service", each, False
    for each in _TOLD:
        yield "stream", each, False
