"""Whose runs there are: where it is looked who signed what, a log counts as its own agent wrote it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, AsyncIterator

from squadron.runtime.errors import InvalidMessageError, UntrustedError
from squadron.runtime.ports.journal import Entry
from squadron.runtime.store.port_set import Ports
from squadron.runtime.trust.guard import Guard
from squadron.runtime.trust.may_say import only_agent
from squadron.runtime.wire.envelope import AgentMessage

#: How long it is remembered who signed an entry, in seconds: credentials become known, and are revoked.
REMEMBERED_S = 60.0


class Authors:
    """Who signed the entries of logs.

    Runs are listed again and again: what was looked at is remembered, and nothing is told of what nobody signed.
    """

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._known, self._until = dict[tuple[str, int], str](), 0.0

    async def newest_of_runs(self) -> tuple[list[Entry], int]:
        """The newest entry of each log by the agent whose run it is, and how many logs no agent signed as its own.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        ports, pattern = self._ports, self._ports.subjects.run()
        guard = ports.guard
        if guard is None or not guard.requires or ports.own_is_apart:
            return await ports.runs.latest(pattern), 0
        ends = dict[str, tuple[Entry, Entry]]()
        async for entry in _once(ports.runs.read(pattern)):
            first, _ = ends.get(entry.key, (entry, entry))
            ends[entry.key] = first, entry
        found = list[Entry]()
        for key, (first, last) in ends.items():
            # The ends of a log tell whose it is; only of one that somebody wrote into all is looked at.
            author = await self._author(guard, first)
            if author and author == await self._author(guard, last):
                found.append(last)
                continue
            newest = await self._newest(guard, ports.runs.read(key))
            found += [newest] if newest is not None else []
        return found, len(ends) - len(found)

    async def _newest(self, guard: Guard, log: AsyncIterable[Entry]) -> Entry | None:
        """The newest entry by whoever began a log."""
        owner, newest = "", None
        async for entry in _once(log):
            author = await self._author(guard, entry)
            owner = owner or author
            newest = entry if author and author == owner else newest
        return newest

    async def _author(self, guard: Guard, entry: Entry) -> str:
        """The agent that wrote an entry as its own; empty if nobody did."""
        now, which = self._ports.clock.time(), (entry.key, entry.seq)
        if now > self._until:
            self._known.clear()
            self._until = now + REMEMBERED_S
        if which not in self._known:
            self._known[which] = await _author(guard, entry)
        return self._known[which]


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
