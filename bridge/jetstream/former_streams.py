"""Streams of agents that were called otherwise: under that name there could be one of another environment.

NATS renames no stream. What one holds goes to another, which has its subjects then. Each step may be the last one
of a bridge that is killed: the next one goes on from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from squadron.bridge.jetstream.link.connect import Connection
from squadron.bridge.jetstream.stream_configs import STREAM_NOT_FOUND, StreamNames, ask_for, find
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.wire.subjects import ROOT

#: How long the server may take to copy what an agent keeps, in seconds; and how often to look. It copies 100 MB a
#: second and more.
COPIED_WITHIN_S, LOOK_S = 60.0, 0.05


async def give_up(connection: Connection, names: StreamNames, name: str, subjects: Sequence[str]) -> bool:
    """Have what was called otherwise give up its subjects; whether there is a stream that holds what it held.

    Args:
        name: as it is called now.
        subjects: that it has.

    Raises:
        BusUnavailableError: the server can't be reached, or refuses.
    """
    former = names.former(name)
    info = await find(connection, f"STREAM.INFO.{former}", missing=STREAM_NOT_FOUND)
    if info is None:
        return False
    # Nothing is put there.
    none, config = [f"{ROOT}.{names.environment}.former.{former}"], info["config"]
    held = sorted(config.get("subjects") or ())
    if held == sorted(subjects):
        await ask_for(connection, f"STREAM.UPDATE.{former}", config | {"subjects": none})
    # Else it is of another environment.
    return held in (sorted(subjects), none)


async def remove(connection: Connection, former: str) -> None:
    """Remove a stream that gave up what it had.

    Raises:
        BusUnavailableError: the server can't be reached, or refuses.
    """
    await find(connection, f"STREAM.DELETE.{former}", missing=STREAM_NOT_FOUND)


async def copy_to_the_end(connection: Connection, former: str, config: dict[str, Any]) -> None:
    """Make a stream that holds what the former one does, under the same numbers, and takes what comes from now on.

    Raises:
        BusUnavailableError: the server can't be reached, refuses, or is not done in time.
    """
    name = config["name"]
    info = await find(connection, f"STREAM.INFO.{name}", missing=STREAM_NOT_FOUND)
    if info is None:
        # A mirror takes nothing but what its origin has.
        copy = {key: value for key, value in config.items() if key not in ("subjects", "duplicate_window")}
        info = await ask_for(connection, f"STREAM.CREATE.{name}", copy | {"mirror": {"name": former}})
    if "mirror" not in info["config"]:
        return
    last = (await ask_for(connection, f"STREAM.INFO.{former}"))["state"]["last_seq"]
    await _until(connection, name, lambda now: bool(now["state"]["last_seq"] >= last))
    own = {key: value for key, value in info["config"].items() if key not in ("mirror", "mirror_direct")}
    await ask_for(connection, f"STREAM.UPDATE.{name}", own | config)


async def source_from(connection: Connection, stream: str, former: str, name: str) -> None:
    """Have a stream go on to tell what comes, from the one that holds now what the former one did.

    Raises:
        BusUnavailableError: the server can't be reached, refuses, or is not done in time.
    """
    config = (await ask_for(connection, f"STREAM.INFO.{stream}"))["config"]
    sources = config.get("sources") or []
    if not any(each["name"] == former for each in sources):
        return
    await _until(connection, stream, lambda now: any(_is_at_its_end(each, former) for each in _sources(now)))
    last = (await ask_for(connection, f"STREAM.INFO.{former}"))["state"]["last_seq"]
    renamed = [
        each | {"name": name, "opt_start_seq": last + 1} if each["name"] == former else each for each in sources
    ]
    await ask_for(connection, f"STREAM.UPDATE.{stream}", config | {"sources": renamed})
    # As of one that is added: the next may come.
    await until_asked(connection, stream, name)


async def until_asked(connection: Connection, stream: str, name: str) -> None:
    """Wait until a stream has asked another one for what it is to tell on.

    Raises:
        BusUnavailableError: the server can't be reached, or is not done in time.
    """

    def is_asked(now: dict[str, Any]) -> bool:
        return any(each["name"] == name and each["active"] >= 0 for each in _sources(now))

    await _until(connection, stream, is_asked)


def _sources(now: dict[str, Any]) -> Sequence[dict[str, Any]]:
    # Left out until the server has set one up.
    return now.get("sources") or ()


def _is_at_its_end(source: dict[str, Any], name: str) -> bool:
    # Inactive for -1: it has not been asked yet, and nobody knows how much there is.
    return bool(source["name"] == name and source["lag"] == 0 and source["active"] >= 0)


async def _until(connection: Connection, stream: str, is_so: Callable[[dict[str, Any]], bool]) -> None:
    for _ in range(round(COPIED_WITHIN_S / LOOK_S)):
        if is_so(await ask_for(connection, f"STREAM.INFO.{stream}")):
            return
        await asyncio.sleep(LOOK_S)
    raise BusUnavailableError(f"{stream} is not copied yet", hint="is the server full? It is looked at again")
