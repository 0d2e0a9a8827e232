"""The bridge when something refuses, fails or is lost: nothing half done, no failure taken for nothing."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from squadron.bridge.control import scaling_figures
from squadron.bridge.control.control import Bridge
from squadron.bridge.serve import backlogs
from squadron.bridge.serve.declaration import application, placed, says, set_by_hand, waits_for
from squadron.bridge.serve.resource_waits import START_TAKES_S, ResourceWaits
from squadron.bridge.serve.scaling import BacklogPolicy
from squadron.runtime.background import cancel_all
from squadron.runtime.errors import BusUnavailableError, DeployError, SquadronError
from squadron.runtime.ports.queue import Backlog, Mailbox
from squadron.runtime.wire.deployment import AgentState, Deployment, Scale
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.topics import AgentCard, SemanticTopic
from tests.unit.test_bridge import Site, deployment_of, eventually, site

__all__ = ["site"]


async def _put_one_each(site: Site, *topics: str) -> None:
    for topic in topics:
        await site.queue.put(site.subjects.task(topic), b"x", msg_id=topic)


async def test_a_refused_deploy_leaves_mailboxes_records_and_cards_as_they_were(site: Site) -> None:
    bridge = await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    site.replicas.refuses = "no room"
    changed = deployment_of("reader", "book.burn", version="v2")

    with pytest.raises(DeployError, match="no room"):
        await site.call("deploy", deployments=[changed, deployment_of("writer", "film.make")])

    await _put_one_each(site, "book.read", "film.make")
    assert await site.queue.backlog("reader") == Backlog(1, 0)
    assert not await site.store.knows("writer")
    assert [(card.agent, card.topics[0].name) for card in bridge.registry.cards()] == [("reader", "book.read")]
    entries = await site.records.latest(site.subjects.registry("deployment"))
    recorded = [Deployment.model_validate_json(entry.data) for entry in entries if entry.data]
    assert [(each.agent, each.code["version"]) for each in recorded] == [("reader", "v1")]


async def test_a_deploy_whose_second_mailbox_is_refused_leaves_the_first_as_it_was(site: Site) -> None:
    await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    # Not in the registry: only the queue knows of it.
    await site.queue.declare(Mailbox("bare", ("film.make",)))
    changed = deployment_of("reader", "book.burn", version="v2")

    with pytest.raises(SquadronError, match="bare") as caught:
        await site.call("deploy", deployments=[changed, deployment_of("writer", "film.*")])

    assert type(caught.value).__name__ == "RouteConflictError"
    await _put_one_each(site, "book.read")
    assert await site.queue.backlog("reader") == Backlog(1, 0)
    assert [each["version"] for each in (await site.call("status"))["agents"]] == ["v1"]


async def test_what_a_refused_deploy_can_not_put_back_at_once_is_put_back_later(site: Site) -> None:
    await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    await _put_one_each(site, "book.read")
    site.store._mailboxes.clear()
    site.store.refuses = 2

    with pytest.raises(SquadronError):
        await site.call("deploy", deployments=[deployment_of("reader", "book.burn", version="v2")])

    async with asyncio.timeout(30):
        while await site.queue.backlog("reader") != Backlog(1, 0):
            await asyncio.sleep(0.005)


async def test_an_agent_that_another_environment_wrote_back_is_declared_again(site: Site) -> None:
    await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    old = site.replicas.applied[-1]
    await site.call("deploy", deployments=[deployment_of(version="v2")])
    await site.call("scale", agent="reader", to="3")

    site.replicas.applied.append(old)

    def is_back() -> bool:
        (now,) = site.replicas.applied[-1]
        return (now.code["version"], str(now.scale)) == ("v2", "3")

    await eventually(is_back)


def test_a_declaration_is_held_against_all_that_is_wanted_and_nothing_else() -> None:
    first = Deployment.model_validate(deployment_of(code={"version": "v1", "import_path": ""}))
    wanted = application("t", first)
    told = application("t", first)
    told["deployments"][0]["autoscaling_config"]["look_back_period_s"] = 30.0
    assert says(told, wanted)

    for change in ({"code": {"version": "v2"}}, {"scale": {"minimum": 2, "maximum": 2}}, {"slots": 3}):
        other = Deployment.model_validate(first.model_dump() | change)
        assert not says(told, application("t", other)), change


def test_bounds_that_somebody_set_at_the_clusters_door_are_told_from_our_own_older_ones() -> None:
    deployment = Deployment.model_validate(deployment_of())
    ours = application("t", deployment)
    assert set_by_hand(ours) is None

    for bounds, scale in (((3, 3), "3"), ((2, 8), "2..8"), ((0, 1), "0..1")):
        told = copy.deepcopy(ours)
        told["deployments"][0]["autoscaling_config"] |= dict(
            zip(("min_replicas", "max_replicas"), bounds, strict=True)
        )
        assert str(set_by_hand(told)) == scale

    fixed = copy.deepcopy(ours)
    del fixed["deployments"][0]["autoscaling_config"]
    fixed["deployments"][0]["num_replicas"] = 2
    assert str(set_by_hand(fixed)) == "2"

    # Declared by an earlier release, or somebody else's: nobody knows who set it.
    told["deployments"][0].pop("user_config")
    assert set_by_hand(told) is None
    assert set_by_hand({}) is None


def test_what_replicas_wait_for_is_told_where_no_node_has_it() -> None:
    state = AgentState(status="DEPLOYING", running=1, target=3)
    plain = Deployment.model_validate(deployment_of())
    greedy = plain.model_copy(update={"num_cpus": 2, "num_gpus": 1})
    nodes = [{"CPU": 4.0}, {"CPU": 1.0, "GPU": 1.0}]

    assert "2 replicas wait for 2 CPU and 1 GPU" in waits_for(greedy, state, nodes)
    assert waits_for(greedy, state, [*nodes, {"CPU": 2.0, "GPU": 1.0}]) == ""
    assert waits_for(greedy, state.model_copy(update={"running": 3}), nodes) == ""
    assert waits_for(plain, state, []) == "", "it asks for nothing that could be missing"


def test_it_is_told_which_replicas_run_on_which_node() -> None:
    def running(*replicas: tuple[str, str]) -> dict[str, Any]:
        return {
            "deployments": {"any": {"replicas": [{"state": state, "node_id": node} for state, node in replicas]}}
        }

    group = running(("RUNNING", "n2")) | {
        "deployed_app_config": {"deployments": [{"user_config": {"seats": {"poet": {}, "shouter": {}}}}]}
    }
    details = {
        "dev.clerk": running(("RUNNING", "n1"), ("RUNNING", "n1"), ("RUNNING", "n2"), ("STARTING", "n1")),
        "dev.group.light": group,
        "dev.asleep": running(),
    }
    assert placed(details) == {"n1": {"clerk": 2}, "n2": {"clerk": 1, "poet": 1, "shouter": 1}}


def test_of_replicas_that_just_start_it_is_not_said_that_no_node_has_what_they_need() -> None:
    now = [1000.0]
    waits, wanted = ResourceWaits(lambda: now[0]), Deployment.model_validate(deployment_of() | {"num_cpus": 1})
    starting, full = AgentState(status="UPDATING", running=0, target=2), [{"CPU": 0.0}]

    assert waits.told(wanted, starting, full) == ""
    now[0] += START_TAKES_S - 1
    assert waits.told(wanted, starting.model_copy(update={"running": 1}), full) == ""
    now[0] += 2
    assert waits.told(wanted, starting.model_copy(update={"running": 1}), full).startswith("1 replica waits for")
    # Once all had what they need it is counted anew.
    waits.over(wanted)
    assert waits.told(wanted, starting, full) == ""
    # So it is of an agent that was gone meanwhile.
    now[0] += START_TAKES_S + 1
    waits.keep([wanted])
    assert waits.told(wanted, starting, full) != ""
    waits.keep([])
    assert waits.told(wanted, starting, full) == ""


async def test_a_scale_set_at_the_clusters_door_is_recorded_as_if_it_had_been_set_here(site: Site) -> None:
    await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    site.replicas.by_hand["reader"] = Scale(minimum=3, maximum=3, pinned=True)

    async with asyncio.timeout(30):
        while (await site.call("status"))["agents"][0]["scale"] != "3":
            await asyncio.sleep(0.005)

    site.replicas.by_hand.clear()
    await eventually(lambda: str(site.replicas.applied[-1][0].scale) == "3")
    key = site.subjects.record("deployment", "reader")
    entry = await site.records.last(key)
    assert entry is not None
    assert str(Deployment.model_validate_json(entry.data).scale) == "3"


async def test_a_bridge_that_can_not_look_says_what_it_knew_and_not_that_there_is_nothing(site: Site) -> None:
    bridge = await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    site.held = {site.subjects.task("book.read"): 2}
    await _put_one_each(site, "book.read")
    await eventually(lambda: bridge.backlogs()["reader"]["held"] == 2)
    assert (await site.call("status"))["agents"][0]["waiting"] == 1

    site.blind = site.store.leaderless = True

    await eventually(lambda: site.failed_looks > 2)
    assert bridge.backlogs()["reader"]["held"] == 2
    assert (await site.call("status"))["agents"][0]["waiting"] == 1


class _Figures:
    """What a policy asks, of a bridge in this process."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def figures(self, agent: str) -> dict[str, int | None] | None:
        return self._bridge.backlogs().get(agent)


async def test_before_its_first_look_a_bridge_scales_nothing_down(site: Site) -> None:
    site.blind = site.store.leaderless = True
    bridge = await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])

    await eventually(lambda: site.failed_looks > 1)

    assert bridge.backlogs() == {"reader": {"held": None, "pinned": None}}
    assert (await site.call("status"))["agents"][0]["waiting"] is None
    policy = BacklogPolicy("t", "reader", 2)
    policy._backlogs = _Figures(bridge)  # type: ignore[assignment]
    assert policy(SimpleNamespace(target_num_replicas=3)) == (3, {})


async def test_what_a_bridge_can_not_look_at_for_long_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling_figures, "STANDS_S", 0.0)
    latest, blind = scaling_figures.LatestFigures(), AsyncMock(side_effect=BusUnavailableError("no leader"))
    keeping = asyncio.create_task(latest.keep(blind, lambda: {"reader": {"held": 0, "pinned": None}}))
    async with asyncio.timeout(30):
        _, figures = await latest.after(latest._id)
    await cancel_all([keeping])
    assert figures == {"reader": {"held": None, "pinned": None}}


async def test_metrics_take_nothing_for_empty_that_was_seen_so_long_ago_that_it_is_not_known(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling_figures, "STANDS_S", 0.0)
    bridge = await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    await eventually(lambda: bridge.backlogs() == {"reader": {"held": 0, "pinned": None}})
    site.blind = True
    await eventually(lambda: site.failed_looks > 1)
    monkeypatch.setattr(site.queue, "backlog", AsyncMock(return_value=Backlog(7, 1)))

    assert [each["waiting"] for each in await bridge.agents(asks_all=False)] == [7]


@pytest.mark.parametrize("release", ["this", "an older"])
async def test_a_bridge_of_any_release_is_heard_and_its_figures_are_known_for_a_while(
    monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    said = {"reader": {"held": 4, "pinned": None}}
    bridge = Mock(spec_set=["figures"] if release == "this" else ["backlogs"])
    (bridge.figures if release == "this" else bridge.backlogs).remote = AsyncMock(
        return_value=("id", said) if release == "this" else said
    )
    known = backlogs.Backlogs("t")
    known._bridge = bridge
    async with asyncio.timeout(30):
        while known.figures("reader") != said["reader"]:
            await asyncio.sleep(0.005)
    monkeypatch.setattr(backlogs, "STAND_S", 0.0)
    assert known.figures("reader") is None


async def test_a_bridge_whose_store_was_lost_writes_all_of_it_anew_and_tells(site: Site) -> None:
    await site.records.append(site.subjects.record("blob", "v1"), b"code")
    bridge = await site.bridge()
    code = {"version": "v1", "import_path": ""}
    await site.call("deploy", deployments=[deployment_of(code=code)])
    await bridge.registry.advertise(AgentCard(agent="bare", topics=(SemanticTopic(name="bare.topic"),)))
    await bridge.registry.renew("bare", "one")
    told: asyncio.Queue[bytes] = asyncio.Queue()
    await site.bus.subscribe(site.subjects.event("status.store_lost"), lambda note: told.put_nowait(note.data))
    site.store._mailboxes.clear()
    kinds = ("deployment", "blob", "card")
    before = {e.key: e.data for kind in kinds for e in await site.records.latest(site.subjects.registry(kind))}
    for key in before:
        await site.records.erase(key)

    site.lost = ["tasks", "registry"]

    event = AgentMessage.decode(await asyncio.wait_for(told.get(), 30))
    assert event.payload.content["streams"] == ["tasks", "registry"]
    assert len(before) == 4
    for key, data in before.items():
        async with asyncio.timeout(30):
            while (now := await site.records.last(key)) is None or now.data != data:
                await asyncio.sleep(0.005)
    await _put_one_each(site, "book.read")
    assert await site.queue.backlog("reader") == Backlog(1, 0)
    assert [loss["streams"] for loss in (await site.call("ping"))["losses"]] == [["tasks", "registry"]]


async def test_an_agent_can_be_undeployed_while_nothing_more_can_be_stored(site: Site) -> None:
    await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    site.records.full = True

    await site.call("undeploy", agent="reader")

    assert site.replicas.applied[-1] == []
    site.records.full = False
    async with asyncio.timeout(30):
        while (card := await site.records.last(site.subjects.card("reader"))) is not None and card.data:
            await asyncio.sleep(0.005)


def _dies_after(site: Site, writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So much of what the bridge writes still gets through: then it is dead."""
    left, records, store = [writes], site.records, site.store

    def until_then(write: Any) -> Any:
        async def written(on: Any, *args: Any, **how: Any) -> Any:
            if isinstance(on, Mailbox) or on.split(".")[3:4] != ["presence"]:
                if not left[0]:
                    raise BusUnavailableError("it is dead")
                left[0] -= 1
            return await write(on, *args, **how)

        return written

    for of, verb in ((records, "append"), (records, "erase"), (store, "declare"), (store, "remove")):
        monkeypatch.setattr(of, verb, until_then(getattr(of, verb)))


@pytest.mark.parametrize("writes", range(6))
@pytest.mark.parametrize("verb", ["deploy", "undeploy"])
async def test_a_bridge_that_is_killed_over_a_call_leaves_no_mailbox_that_nobody_can_have_taken_away(
    site: Site, monkeypatch: pytest.MonkeyPatch, verb: str, writes: int
) -> None:
    killed = await site.bridge()
    if verb == "undeploy":
        await site.call("deploy", deployments=[deployment_of()])
    with monkeypatch.context() as dying:
        _dies_after(site, writes, dying)
        # It has no time to put anything back.
        with contextlib.suppress(SquadronError):
            await (killed.deploy([deployment_of()]) if verb == "deploy" else killed.undeploy("reader"))
        await killed.aclose()
    await site.bridge()

    with contextlib.suppress(SquadronError):
        await site.call("undeploy", agent="reader")
    async with asyncio.timeout(30):
        while await site.store.knows("reader"):
            await asyncio.sleep(0.005)
    await site.call("deploy", deployments=[deployment_of("rival", "book.read")])


async def test_an_agent_whose_end_is_told_as_failed_is_still_there_for_the_next_bridge(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    erase, key = site.records.erase, site.subjects.record("deployment", "reader")

    async def unconfirmed(*args: Any, **how: Any) -> None:
        await erase(*args, **how)
        raise BusUnavailableError("nobody acknowledged it")

    with monkeypatch.context() as losing:
        losing.setattr(site.records, "erase", unconfirmed)
        with pytest.raises(BusUnavailableError):
            await bridge.undeploy("reader")

    async with asyncio.timeout(30):
        while await site.records.last(key) is None or await site.records.latest(site.subjects.registry("leaving")):
            await asyncio.sleep(0.005)
    await bridge.aclose()
    await site.bridge()
    assert [each["agent"] for each in (await site.call("status"))["agents"]] == ["reader"]
