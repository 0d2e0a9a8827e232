"""Calls of a bridge that does not answer."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from squadron.bridge.control import bridge_calls
from squadron.bridge.control.bridge_calls import Control
from squadron.runtime.errors import BridgeUnavailableError, BusUnavailableError, NotThereError
from squadron.runtime.ports.bus import Note
from squadron.runtime.wire.subjects import Subjects
from tests.unit.test_bridge import Site, deployment_of, site
from tests.unit.test_canary_control import canary_of

__all__ = ["site"]


class NobodyThere:
    """A bus on which no bridge answers."""

    async def exchange(self, subject: str, *_: Any, **__: Any) -> Any:
        raise BusUnavailableError(f"nobody answers on {subject}")


async def test_who_waits_for_a_bridge_is_told_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge_calls, "CALL_WITHIN_S", 0.6)
    monkeypatch.setattr(bridge_calls, "TELL_AFTER_S", 0.0)
    bus: Any = NobodyThere()

    with capture_logs() as logs, pytest.raises(BridgeUnavailableError):
        await Control(bus, Subjects("dev")).call("status")

    (told,) = [line for line in logs if line["event"] == "bridge.away"]
    assert told["error"] == "nobody answers on agents.dev.bridge.status"


class DeadOverTheAnswer:
    """A bus on which a bridge dies when it has done its first call, and is back at once."""

    def __init__(self, site: Site) -> None:
        self._site, self._has_died = site, False

    async def exchange(self, *asked: Any, **how: Any) -> Note:
        answer = await self._site.bus.exchange(*asked, **how)
        if not self._has_died:
            self._has_died = True
            await self._site.bridges[-1].aclose()
            await self._site.bridge()
            raise BusUnavailableError("no answer")
        return answer


@pytest.mark.parametrize(("verb", "how"), [("undeploy", {}), ("canary", {"to": "abort"})])
async def test_what_a_bridge_took_away_before_it_died_over_the_answer_is_told_as_done(
    site: Site, verb: str, how: dict[str, Any]
) -> None:
    await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    await site.call("deploy_canary", deployments=[canary_of()])
    bus: Any = DeadOverTheAnswer(site)
    control = Control(bus, site.subjects)

    assert await control.call(verb, agent="reader", **how) == {"agent": "reader"}

    with pytest.raises(NotThereError):
        await control.call(verb, agent="reader", **how)
