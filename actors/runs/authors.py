"""Whose runs there are: where it is looked who signed what, a log counts as its own agent wrote it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterable, AsyncIterator

from squadron.runtime.errors import InvalidMessageError, UntrustedError
from squadron.runtime.ports.journal import Entry
from squadron.runtime.store.own_journal import required
from squadron.runtime.store.port_set import Ports
from squadron.runtime.trust.agent_sender import SENDER_HEADER
from squadron.runtime.trust.guard import Guard
from squadron.runtime.trust.may_say import only_agent
from squadron.runtime.wire.envelope import AgentMessage

#: How long it is remembered who signed an entry, in seconds: credentials become known, and are revoked.
REMEMBERED_S = 60.0

_USER = re.compile(r'"user":"(U\w+)"')


class Authors:
    """Who signed the entries of logs.

    Runs are listed again and again: what was looked at is remembered, and nothing is told of what nobody signed.
    """

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._known, self._until = dict[tuple[str, int], str](), 0.0

    async def newest_of_runs(self) -> tuple[list[Entry], int]:
        """The newest entry of each log by the agent whose run it is, and how many more runs there may be: of logs
        that no agent signed as its own, and of agents that wrote into a log which another one began.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        ports, pattern = self._ports, self._ports.subjects.run()
        if (guard := required(ports)) is None:
            return await ports.runs.latest(pattern), 0
        ends, users = dict[str, tuple[Entry, Entry]](), dict[str, set[str]]()
        async for entry in _once(ports.runs.read(pattern)):
            first, _ = ends.get(entry.key, (entry, entry))
            ends[entry.key] = first, entry
            users.setdefault(entry.key, set()).add(_user(entry))
        found, left_out = list[Entry](), 0
        for key, (first, last) in ends.items():
            # The ends of a log tell whose it is; only of one that somebody else wrote into all is looked at.
            author = await self._author(guard, first)
            if len(users[key]) == 1 and author and author == await self._author(guard, last):
                found.append(last)
                continue
            newest, others = await self._newest(guard, key)
            found += [newest] if newest is not None else []
            left_out += others if newest is not None else 1
        return found, left_out

    async def are_several(self, run: str) -> bool:
        """Whether more than one agent wrote into the log of a run as its own.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        guard = required(self._ports)
        return guard is not None and (await self._newest(guard, self._ports.subjects.run(run)))[1] > 0

    async def _newest(self, guard: Guard, key: str) -> tuple[Entry | None, int]:
        """The newest entry by whoever began a log, and how many others wrote into it as their own."""
        newest = dict[str, Entry]()
        async for entry in _once(self._ports.runs.read(key)):
            if author := await self._author(guard, entry):
                newest[author] = entry
        return next(iter(newest.values()), None), max(0, len(newest) - 1)

    async def _author(self, guard: Guard, entry: Entry) -> str:
        """The agent that wrote an entry as its own; empty if nobody did."""
        now, which = self._ports.clock.time(), (entry.key, entry.seq)
        if now > self._until:
            self._known.clear()
            self._until = now + REMEMBERED_S
        if which not in self._known:
            self._known[which] = await _author(guard, entry)
        return self._known[which]


def _user(entry: Entry) -> str:
    """The public key of who signed, as our signers write it: by it one who is honest is found without a look."""
    found = _USER.search(entry.headers.get(SENDER_HEADER, ""))
    return found[1] if found else ""


async def _once(log: AsyncIterable[Entry]) -> AsyncIterator[Entry]:
    """Entries, without those that were put there again: each has an id of its own in its bytes."""
    seen = set[tuple[str, bytes]]()
    async for entry in log:
        which = entry.key, hashlib.sha256(entry.data).digest()
        if which not in seen:
            yield entry
        seen.add(which)


async def _author(guard: Guard, entry: Entry) -> str:
    try:
        about = (AgentMessage.decode(entry.data).metadata or {}).get("about")
        agent = about.get("agent") if isinstance(about, dict) else None
        if not isinstance(agent, str):
            return ""
        only_agent(agent)(await guard.verifier.verify(entry.key, entry.data, entry.headers, at=entry.time))
    except (InvalidMessageError, UntrustedError):
        return ""
    return agent
