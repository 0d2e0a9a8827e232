"""Asking the bridge to do something, over NATS."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

from squadron.runtime.asking.bridge_answer import read_answer
from squadron.runtime.errors import (
    BridgeUnavailableError,
    BusUnavailableError,
    NotThereError,
    SquadronError,
    UntrustedError,
)
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.bus import UnreliableBus
from squadron.runtime.store.operating import operator
from squadron.runtime.trust.guard import Guard
from squadron.runtime.trust.may_say import only
from squadron.runtime.wire.subjects import Subjects

#: A call of the bridge ends within this, in seconds: one that was just killed is back in about two.
CALL_WITHIN_S = 30.0
#: After this it is told that somebody waits, in seconds: later than a bridge that was killed is back.
TELL_AFTER_S = 3.0
#: A bridge that did not answer in this time, in seconds, may have died over the question, which is asked again.
TRY_WITHIN_S = 5.0
#: How long to wait for a sign of life when none may be there, in seconds; no responder answers at once.
PING_WITHIN_S = 5.0

_log = get_logger("squadron.bridge")


class Control:
    """The bridge's control verbs."""

    def __init__(self, bus: UnreliableBus, subjects: Subjects, guard: Guard | None = None) -> None:
        self._bus, self._subjects, self._guard = bus, subjects, guard

    async def _ask(self, verb: str, arguments: dict[str, Any], within_s: float) -> dict[str, Any]:
        data = json.dumps(arguments).encode()
        note = await self._bus.exchange(self._subjects.control(verb), data, within_s=within_s)
        if self._guard is not None:
            # Where it is heard is not where the bridge published it, if that is in another account.
            await self._guard.admit("answer", None, note.data, note.headers, at=None, may=only("bridge"))
        answer = read_answer(note.data)
        if self._guard is not None and (answer.get("verb"), answer.get("callId")) != (verb, arguments["callId"]):
            self._guard.refuse("answer", note.subject, UntrustedError("it answers another call"))
        return answer

    async def bridge(self) -> dict[str, Any] | None:
        """What the bridge says of itself, or None if there is none."""
        try:
            answer = await self._ask("ping", {"callId": uuid.uuid4().hex}, PING_WITHIN_S)
        except BusUnavailableError:
            return None
        return _ok(answer)

    async def call(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """One call, asked again if the bridge dies over it; raises the error that the bridge raised.

        Raises:
            BridgeUnavailableError: no bridge answers.
            UntrustedError: somebody else answers in its place.
            InvalidMessageError: it is no answer.
        """
        asked = {"callId": uuid.uuid4().hex, "by": operator(), **arguments}
        loop = asyncio.get_running_loop()
        began, is_told, is_again = loop.time(), False, False
        give_up_at = began + CALL_WITHIN_S
        while True:
            try:
                answer = await self._ask(verb, asked, TRY_WITHIN_S)
                break
            except BusUnavailableError as error:
                is_again = True
                if loop.time() > give_up_at:
                    raise BridgeUnavailableError(
                        f"no bridge for environment {self._subjects.environment!r}: {error}",
                        hint="see `squadron doctor`; if nothing runs, `squadron up`",
                    ) from None
                if not is_told and loop.time() >= began + TELL_AFTER_S:
                    is_told = True
                    _log.warning("bridge.away", error=str(error), within_s=CALL_WITHIN_S)
                await asyncio.sleep(0.25)
        try:
            return _ok(answer)
        except NotThereError:
            # A bridge may have taken it away, and died over the answer.
            if is_again and (verb == "undeploy" or (verb, arguments.get("to")) == ("canary", "abort")):
                return {"agent": arguments["agent"]}
            raise


def _ok(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise SquadronError.from_dict(answer["error"])
    ok: dict[str, Any] = answer["ok"]
    return ok
