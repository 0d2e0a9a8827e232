"""An archivist as a program of its own, wherever it runs: in an actor beside the bridge, or on a command line."""

from __future__ import annotations

import contextlib
import os

from squadron.bridge.audit.anchors import Seal
from squadron.bridge.audit.archivist import Archivist
from squadron.bridge.audit.records import RecordMaker
from squadron.bridge.audit.redaction import Redaction
from squadron.bridge.jetstream.intake import Intake
from squadron.bridge.jetstream.link.dial import connect
from squadron.bridge.jetstream.stream_configs import StreamNames
from squadron.config import Settings

#: The least that a process can have.
NICENESS = 19


async def archive(settings: Settings) -> None:
    """Keep the trail of an environment until this is cancelled; waits while another archivist does.

    Raises:
        ConfigError: the rules of redaction, or the files of the home, can't be used.
        BusUnavailableError: the server can't be reached.
    """
    _give_way()
    rules, seal = Redaction(settings.audit_redact), Seal(settings.home, settings.env)
    connection = await connect(settings, name=f"archivist-{os.getpid()}")
    try:
        intake = Intake(connection, StreamNames(settings.env))
        await Archivist(intake, RecordMaker(rules, seal.commitment_key), seal).run()
    finally:
        await connection.aclose()


def _give_way() -> None:
    """Leave the CPU to who works: what waits in the intake is stored there, and can wait.

    Of the thread that this is called in alone (Linux), so that Ray's own in an actor's process are as they were.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
