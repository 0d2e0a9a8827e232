"""The text of a nats-server's configuration with the two accounts: for a server of your own, and for tests."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from squadron.bridge.auth.roles import API_PREFIX, Rights
from squadron.runtime.wire.subjects import ROOT

#: The account of the streams and the bridge, and that of everybody else.
STREAMS, AGENTS = "SQ", "AGENTS"

#: What is published in `AGENTS` and goes to the streams, or to the bridge. Not `audit`: nobody but the archivist
#: writes the trail. Status events are also for the bridge, which counts by them.
_KINDS = ("task", "query", "ordered", "ticket", "lite", "life", "run", "registry", "dead", "durable")
_SUBJECTS = tuple(f"{ROOT}.*.{kind}.>" for kind in (*_KINDS, "filed", "bridge"))
_SERVICES = (*_SUBJECTS, f"{ROOT}.*.event.status.*", "$O.>", "$JS.ACK.>")
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
    exported = [
        {"service": "$JS.API.>", "response_type": "stream", "accounts": [AGENTS]},
        *({"service": each, "accounts": [AGENTS]} for each in _SERVICES),
        *({"stream": each, "accounts": [AGENTS]} for each in _TOLD),
    ]
    imported = [
        {"service": {"account": STREAMS, "subject": "$JS.API.>"}, "to": f"{API_PREFIX}.>"},
        *({"service": {"account": STREAMS, "subject": each}} for each in _SERVICES),
        *({"stream": {"account": STREAMS, "subject": each}} for each in _TOLD),
    ]
    both = {
        STREAMS: {"jetstream": "enabled", "users": users[STREAMS], "exports": exported},
        AGENTS: {"users": users[AGENTS], "imports": imported},
    }
    # JSON is a part of the language of these configurations.
    return f"accounts: {json.dumps(both, indent=2)}\n"
