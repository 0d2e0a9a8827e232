"""The bridge when something refuses, fails or is lost: nothing half done, no failure taken for nothing."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from squadron.bridge.control.control import Bridge
from squadron.bridge.serve.cluster import _says, application
from squadron.bridge.serve.scaling import BacklogPolicy
from squadron.runtime.errors import DeployError, SquadronError
from squadron.runtime.ports.queue import Backlog, Mailbox
from squadron.runtime.wire.deployment import Deployment
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

    async with asyncio.timeout(5):
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
    assert _says(told, wanted)

    for change in ({"code": {"version": "v2"}}, {"scale": {"minimum": 2, "maximum": 2}}, {"slots": 3}):
        other = Deployment.model_validate(first.model_dump() | change)
        assert not _says(told, application("t", other)), change


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

    event = AgentMessage.decode(await asyncio.wait_for(told.get(), 5))
    assert event.payload.content["streams"] == ["tasks", "registry"]
    assert len(before) == 4
    for key, data in before.items():
        async with asyncio.timeout(5):
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
    async with asyncio.timeout(5):
        while (card := await site.records.last(site.subjects.card("reader"))) is not None and card.data:
            await asyncio.sleep(0.005)
