"""Whose runs there are: where it is looked who signed what, a log counts as its own agent wrote it."""

from __future__ import annotations

from collections.abc import AsyncIterable
from contextlib import aclosing

from squadron.runtime.errors import InvalidMessageError
from squadron.runtime.ports.journal import Entry
from squadron.runtime.store.own_journal import is_own
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.envelope import AgentMessage


async def newest_of_runs(ports: Ports) -> tuple[list[Entry], int]:
    """The newest entry of each log by the agent whose run it is, and how many logs no agent signed as its own.

    Raises:
        BusUnavailableError: the server can't be reached.
    """
    pattern = ports.subjects.run()
    if ports.guard is None:
        return await ports.runs.latest(pattern), 0
    ends = dict[str, tuple[Entry, Entry]]()
    async for entry in ports.runs.read(pattern):
        first, _ = ends.get(entry.key, (entry, entry))
        ends[entry.key] = first, entry
    found = list[Entry]()
    for key, (first, last) in ends.items():
        # The ends of a log tell whose it is; only of one that somebody wrote into all is looked at.
        author = await _author(ports, first)
        if author and author == await _author(ports, last):
            found.append(last)
            continue
        async with aclosing(ports.runs.read(key)) as entries:
            newest = await _newest(ports, entries)
        found += [newest] if newest is not None else []
    return found, len(ends) - len(found)


async def _newest(ports: Ports, log: AsyncIterable[Entry]) -> Entry | None:
    """The newest entry by whoever began a log."""
    owner, newest = "", None
    async for entry in log:
        author = await _author(ports, entry)
        owner = owner or author
        newest = entry if author and author == owner else newest
    return newest


async def _author(ports: Ports, entry: Entry) -> str:
    """The agent that wrote an entry as its own; empty if nobody did."""
    try:
        about = (AgentMessage.decode(entry.data).metadata or {}).get("about")
    except InvalidMessageError:
        return ""
    agent = about.get("agent") if isinstance(about, dict) else None
    return agent if isinstance(agent, str) and await is_own(ports, entry, agent) else ""
