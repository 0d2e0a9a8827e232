"""Commands that change or show agents, as processes of their own, and who comes after a bridge was stopped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from squadron import Settings, Squad
from squadron.bridge.gateways.running_gateways import announced
from squadron.client.farewell import tell_gone
from squadron.runtime.errors import BridgeUnavailableError, SquadronError
from squadron.runtime.registry.registry import STAND_IN
from squadron.servers import coming_up
from tests.contract import command
from tests.contract.console_world import Clerk, ConsoleWorld, Till, console_world


@pytest.fixture
async def office(settings: Settings) -> AsyncIterator[ConsoleWorld]:
    async with console_world(settings, Clerk, Till) as made:
        yield made


async def _ended(office: ConsoleWorld, *arguments: str) -> tuple[int, str, str]:
    wiring: Any = office.squad._wiring
    return await command.run(wiring, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [("scale", "clerk=3", "tile=2"), ("undeploy", "clerk", "tile"), ("rotate-key", "clerk", "tile")],
    ids=lambda arguments: arguments[0],
)
async def test_who_names_an_agent_that_is_not_there_changes_none_of_the_others(
    office: ConsoleWorld, arguments: tuple[str, ...]
) -> None:
    before = await office.squad._declared_now()

    code, _, said = await _ended(office, *arguments)

    assert code == 2
    assert "no agent 'tile' is deployed (did you mean till? deployed are clerk, till)" in said
    assert await office.squad._declared_now() == before


async def test_a_deploy_says_whose_place_the_agent_takes(office: ConsoleWorld) -> None:
    other = type("Other", (Clerk,), {"name": "clerk", "__module__": __name__, "__doc__": "Stamps, too."})

    with capture_logs() as told:
        await office.squad.deploy(Clerk, Till)
    assert [line for line in told if line["event"] == "squad.replaced"] == []

    with capture_logs() as told:
        await office.squad.deploy(other)
    (line,) = [line for line in told if line["event"] == "squad.replaced"]
    assert (line["agent"], line["was"], line["log_level"]) == (
        "clerk",
        "tests.contract.console_world:Clerk",
        "warning",
    )


async def test_the_nodes_are_listed_with_what_runs_there(office: ConsoleWorld) -> None:
    code, shown, _ = await _ended(office, "nodes")
    assert code == 0
    head, row = shown.splitlines()
    assert head.split("  ")[0] == "NODE"
    assert row.split() == ["here", "(head)", "127.0.0.1", "alive", "1/2", "6.0/8.0", "GB", "bridge,", "clerk", "1"]

    code, printed, _ = await _ended(office, "nodes", "--json")
    assert code == 0
    (node,) = json.loads(printed)["nodes"]
    assert (node["name"], node["bridge"], node["replicas"]) == ("here", True, {"clerk": 1})


async def test_the_status_calls_gateways_and_consoles_by_their_names(office: ConsoleWorld) -> None:
    home, env = office.squad.settings.home, office.squad.settings.env
    with announced(home, env, ["console"], "http://127.0.0.1:1"):
        _, _, said = await _ended(office, "status")
        assert "is at http://127.0.0.1:1" in said
        assert "Console " in said
        _, printed, _ = await _ended(office, "status", "--json")
        assert [each["kind"] for each in json.loads(printed)["gateways"]] == ["console"]


async def test_after_a_bridge_was_stopped_nobody_waits_for_it(settings: Settings) -> None:
    async with console_world(settings, Clerk):
        # It still answers: whoever stopped something else has nothing to tell.
        await tell_gone(settings)
        async with Squad.connect(settings) as squad:
            assert squad._place.registry.is_live("clerk")

    # What it had said last counts for some heartbeats.
    async with Squad.connect(settings) as squad:
        assert STAND_IN in squad._place.registry._present.of("clerk")
        # A replica that was killed with its Ray has not taken its leave either.
        await squad._place.registry.renew("clerk", "clerk-killed")

    await tell_gone(settings)
    with pytest.raises(BridgeUnavailableError, match="has no bridge"):
        await Squad.connect(settings)


async def test_who_comes_while_the_environment_is_brought_up_waits_for_it(settings: Settings) -> None:
    with coming_up(settings), capture_logs() as told:
        joining = asyncio.ensure_future(Squad.connect(settings)._open())
        async with asyncio.timeout(60):
            while not any(line["event"] == "squad.coming_up" for line in told):
                await asyncio.sleep(0.01)
        async with console_world(settings, Till):
            squad = await joining
            assert [card.agent for card in squad._place.registry.cards()] == ["till"]
            await squad.aclose()
        await tell_gone(settings)
    with pytest.raises(BridgeUnavailableError):
        await Squad.connect(settings)


async def test_where_it_cannot_be_told_whether_one_is_brought_up_the_first_error_is_told(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "up").write_text("no folder")
    with pytest.raises(SquadronError):
        await Squad.connect(replace(settings, home=tmp_path))
