"""What people have done to an environment: told to observers, and recorded first where there is an audit trail."""

from __future__ import annotations

import contextlib
import functools
import getpass
import json
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

from squadron.runtime.retries import summary_of
from squadron.runtime.store.port_set import Ports


@functools.cache
def _here() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # no such user in a container
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def operator() -> str:
    """Who acts here, and from where: `user@host/pid`, as far as this process knows."""
    return f"{_here()}/{os.getpid()}"


@contextlib.asynccontextmanager
async def operating(ports: Ports, verb: str, on: str, *, by: str = "", **details: Any) -> AsyncIterator[None]:
    """Around an action of an operator: it is recorded before it is done, and if it fails, that is, too.

    Args:
        by: who has it done, if that is not this process.
        details: what else is to be said of it; JSON.

    Raises:
        BusUnavailableError: it can't be recorded, so it is not done.
    """
    said = {"verb": verb, "on": on, "by": by or operator(), "through": ports.identity.id, "details": details}
    await ports.file_action(verb, json.dumps(said, default=str).encode())
    try:
        yield
    except Exception as error:
        with contextlib.suppress(Exception):
            await ports.file_action(verb, json.dumps(said | {"error": summary_of(error)}, default=str).encode())
        raise
    if ports.observers.on:
        from squadron.runtime.telemetry.happenings import Operated

        ports.observers.tell(Operated(verb=verb, on=on, by=str(said["by"]), details=details))
