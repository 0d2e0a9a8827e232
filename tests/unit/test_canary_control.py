"""What the bridge does with canaries: what it lets in, what it tells, and what the next bridge finds of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from squadron.bridge.control.scaling_figures import figures_of
from squadron.bridge.serve.declaration import application, applications
from squadron.cli.canary import lines
from squadron.runtime.errors import (
    ConfigError,
    IncompatibleVersionError,
    InvalidAgentError,
    InvalidMessageError,
    InvalidShareError,
    RouteConflictError,
)
from squadron.runtime.wire.deployment import Deployment, Scale
from tests.unit.test_bridge import Site, deployment_of, eventually


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    yield made
    for bridge in made.bridges:
        await bridge.aclose()
    for place in made.places:
        await place.aclose()


def canary_of(version: str = "v2", *, weight: int = 10, needs: str = "", **changes: Any) -> dict[str, Any]:
    made = deployment_of(version=version) | {"weight": weight} | changes
    if needs:
        made["card"]["topics"][0]["input_schema"] = {"type": "object", "required": [needs]}
    return made


async def test_a_canary_runs_beside_what_serves_and_the_card_says_its_share(site: Site) -> None:
    bridge = await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    assert await site.call("deploy_canary", deployments=[canary_of()]) == {"agents": {"reader": "v2"}}

    (agent,) = site.replicas.applied[-1]
    assert [(each.application, each.code["version"]) for each in agent.versions] == [
        ("reader", "v1"),
        ("canary.reader", "v2"),
    ]
    card = bridge.registry.card("reader")
    assert card is not None
    assert card.canary is not None
    assert (card.canary.version, card.canary.weight) == ("v2", 10)

    # A bridge that comes after this one finds it so.
    await bridge.aclose()
    again = await site.bridge()
    await site.call("canary", agent="reader", to="25")
    await eventually(lambda: again.registry.card("reader").canary.weight == 25)


async def test_a_canary_that_callers_would_not_know_is_refused_with_what_changed_unless_forced(site: Site) -> None:
    await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    asked = [canary_of(needs="page")]

    with pytest.raises(IncompatibleVersionError, match=r"book\.read: input page is required") as refused:
        await site.call("deploy_canary", deployments=asked)
    assert "--force" in refused.value.hint
    assert site.replicas.applied[-1][0].canary is None

    await site.call("deploy_canary", deployments=asked, force=True)
    assert site.replicas.applied[-1][0].canary is not None


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (canary_of("v1"), "runs that code already"),
        (canary_of(ordered_by="conversation"), "in order"),
        (canary_of() | {"card": deployment_of("writer")["card"]}, "no agent 'writer' is deployed"),
    ],
    ids=["same code", "order", "nothing runs"],
)
async def test_what_can_not_be_beside_what_serves_is_refused(site: Site, asked: dict[str, Any], said: str) -> None:
    await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    with pytest.raises(ConfigError, match=said):
        await site.call("deploy_canary", deployments=[asked])
    assert all(each.canary is None for each in site.replicas.applied[-1])


async def test_code_that_a_node_has_once_has_no_two_versions(site: Site) -> None:
    await site.bridge()
    installed = {"import_path": "package.module:Reader"}
    await site.call("deploy", deployments=[deployment_of() | {"code": {"version": "v1", **installed}}])
    with pytest.raises(ConfigError, match="of which a node has one"):
        await site.call("deploy_canary", deployments=[canary_of() | {"code": {"version": "v2", **installed}}])


async def test_a_new_topic_of_a_canary_is_nobody_else_s(site: Site) -> None:
    await site.bridge()
    await site.call("deploy", deployments=[deployment_of(), deployment_of("writer", "book.write")])
    both = deployment_of("reader", "book.read", "book.write")["card"]
    with pytest.raises(RouteConflictError):
        await site.call("deploy_canary", deployments=[canary_of() | {"card": both}])


@pytest.mark.parametrize(("to", "version"), [("promote", "v2"), ("abort", "v1")], ids=["promoted", "aborted"])
async def test_a_canary_that_is_ended_leaves_one_version(site: Site, to: str, version: str) -> None:
    bridge = await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    await site.call("deploy_canary", deployments=[canary_of(needs="page")], force=True)
    assert await site.call("canary", agent="reader", to=to) == {"agent": "reader", "version": version}

    (agent,) = site.replicas.applied[-1]
    assert (agent.code["version"], agent.weight) == (version, None)
    if to == "promote":
        # It works on, as the canary that it was, until its code runs in the place of what served.
        assert agent.canary is not None
        assert bridge.registry.card("reader").canary.weight == 10  # type: ignore[union-attr]
        for serving in ("v1", "v2"):
            assert (await site.call("status"))["agents"][0]["canary"]["promoted"]
            await bridge.registry.renew("reader", "reader-1", version=serving)
        await eventually(lambda: site.replicas.applied[-1][0].canary is None)
        (agent,) = site.replicas.applied[-1]
    assert agent.canary is None
    await eventually(lambda: bridge.registry.card("reader").canary is None)
    card = bridge.registry.card("reader")
    assert card is not None
    # Callers of before are told, as by any deployment.
    assert bool(card.topics[0].changed) == (to == "promote")
    with pytest.raises(ConfigError, match="has no canary"):
        await site.call("canary", agent="reader", to="50")


async def test_a_deployment_of_the_agent_ends_its_canary(site: Site) -> None:
    await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    await site.call("deploy_canary", deployments=[canary_of()])
    await site.call("deploy", deployments=[deployment_of(version="v3")])
    (agent,) = site.replicas.applied[-1]
    assert (agent.code["version"], agent.canary) == ("v3", None)


@pytest.mark.parametrize("to", ["101", "-1", "10%", "", "halt", "\u0661", 25, None, ["1"]], ids=repr)
async def test_what_is_no_share_is_refused(site: Site, to: object) -> None:
    await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    await site.call("deploy_canary", deployments=[canary_of()])
    with pytest.raises(InvalidShareError, match="no share of tasks") as refused:
        await site.call("canary", agent="reader", to=to)
    assert refused.value.field == "to"
    assert "0 to 100" in refused.value.hint


@pytest.mark.parametrize("weight", [None, -1, 101, 10.0, "10", True, [10]], ids=repr)
async def test_a_canary_with_no_share_is_refused_at_the_door_and_leaves_what_serves(
    site: Site, weight: object
) -> None:
    await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    with pytest.raises(InvalidShareError, match="no share of tasks") as refused:
        await site.call("deploy_canary", deployments=[deployment_of(version="v2") | {"weight": weight}])
    assert refused.value.field == "weight"
    assert "0 to 100" in refused.value.hint
    assert all(each.canary is None for each in site.replicas.applied[-1])


async def test_what_serves_has_no_share_and_no_canary_that_nobody_checked(site: Site) -> None:
    await site.bridge()
    with pytest.raises(InvalidShareError) as refused:
        await site.call("deploy", deployments=[canary_of()])
    assert refused.value.field == "weight"
    await site.call("deploy", deployments=[deployment_of() | {"canary": canary_of("v1")}])
    assert site.replicas.applied[-1][0].canary is None
    for odd in ("reader", ["reader"], None):
        with pytest.raises(InvalidMessageError):
            await site.call("deploy", deployments=odd)


async def test_a_canary_that_is_promoted_goes_when_its_code_runs_and_not_before_though_the_bridge_died(
    site: Site,
) -> None:
    bridge = await site.bridge()
    await site.call("deploy", deployments=[deployment_of()])
    await site.call("deploy_canary", deployments=[canary_of()])
    # New code deployed that is the canary's is a promotion, too.
    await site.call("deploy", deployments=[deployment_of(version="v2")])
    assert [each.code["version"] for each in site.replicas.applied[-1][0].versions] == ["v2", "v2"]
    await bridge.registry.renew("reader", "reader-1", version="v1")
    await bridge.registry.renew("reader", "reader-2", version="v2")
    await bridge.registry.renew("reader", "reader-3", version="v2", canary=True)
    await bridge.aclose()

    again = await site.bridge()
    # Asked again it is the same; and what can't be taken back is not.
    assert await site.call("canary", agent="reader", to="promote") == {"agent": "reader", "version": "v2"}
    for to in ("abort", "50"):
        with pytest.raises(ConfigError, match="promoted already"):
            await site.call("canary", agent="reader", to=to)
    with pytest.raises(ConfigError, match="promoted already"):
        await site.call("deploy_canary", deployments=[canary_of("v3")])
    (row,) = (await site.call("status"))["agents"]
    assert row["canary"]["promoted"]
    assert "goes when stable runs its code" in lines(row)[1]

    await again.registry.depart("reader", "reader-1")
    await eventually(lambda: site.replicas.applied[-1][0].canary is None)


async def test_a_canary_has_the_group_of_what_serves_so_that_it_does_not_leave_it_when_it_is_promoted(
    site: Site,
) -> None:
    await site.bridge()
    await site.call("deploy", deployments=[deployment_of(group="light")])
    with pytest.raises(InvalidAgentError, match="num_cpus"):
        await site.call("deploy_canary", deployments=[canary_of(num_cpus=1)])
    await site.call("deploy_canary", deployments=[canary_of(group="other")])
    await site.call("canary", agent="reader", to="promote")
    assert [each.group for each in site.replicas.applied[-1][0].versions] == ["light", "light"]


async def test_status_tells_of_both_versions_beside_each_other(site: Site) -> None:
    bridge = await site.bridge()
    bridge._endings = lambda _: {"v1": {"result": 90}, "v2": {"result": 8, "failed": 2}}
    await site.call("deploy", deployments=[deployment_of()])
    await site.call("deploy_canary", deployments=[canary_of()])
    await bridge.registry.renew("reader", "reader-1", version="v1")
    await bridge.registry.renew("reader", "reader-2", version="v2", canary=True)

    (agent,) = (await site.call("status"))["agents"]

    tried = agent["canary"]
    assert [each["id"] for each in agent["replicas"]] == ["reader-1"]
    assert [each["id"] for each in tried["replicas"]] == ["reader-2"]
    assert (tried["version"], tried["weight"], tried["status"]) == ("v2", 10, "RUNNING")
    assert (tried["outcomes"], tried["stable_outcomes"]) == ({"result": 8, "failed": 2}, {"result": 90})
    stable, canary = lines(agent)
    assert "90 %" in stable
    assert "90 ended, 0.0% failed" in stable
    assert "10 ended (2 failed), 20.0% failed" in canary


def test_a_canary_is_an_application_of_its_own_that_never_sleeps() -> None:
    asleep = Scale(minimum=0, maximum=2)
    canary = Deployment.model_validate(canary_of()).model_copy(update={"scale": asleep, "bounds": asleep})
    stable = Deployment.model_validate(deployment_of())
    declared, alone = application("prod", canary), application("prod", stable)

    assert (declared["name"], declared["args"]["canary"]) == ("prod.canary.reader", True)
    (running,) = declared["deployments"]
    assert running["autoscaling_config"]["min_replicas"] == 1
    # What is no canary is declared as it always was: else its replicas would start anew.
    assert (alone["name"], "canary" in alone["args"]) == ("prod.reader", False)


def test_the_autoscaler_hears_of_each_version_s_part_of_what_is_held() -> None:
    canary = Deployment.model_validate(canary_of(weight=30))
    both = Deployment.model_validate(deployment_of()).model_copy(update={"canary": canary})
    held = {name: each["held"] for name, each in figures_of({"reader": both}, {"reader": 10}).items()}
    assert held == {"reader": 7, "canary.reader": 3}
    assert all(each["held"] is None for each in figures_of({"reader": both}, {}).values())
    # Whatever the shares are, somebody has to take it out of the mailbox.
    full = {"reader": both.model_copy(update={"canary": canary.model_copy(update={"weight": 100})})}
    assert figures_of(full, {"reader": 1})["reader"]["held"] == 1
    assert figures_of(full, {"reader": 0})["reader"]["held"] == 0


def test_a_canary_of_an_agent_in_a_group_has_processes_of_its_own() -> None:
    canary = Deployment.model_validate(canary_of(group="light"))
    both = Deployment.model_validate(deployment_of(group="light")).model_copy(update={"canary": canary})
    declared = {each["name"]: each for each in applications("prod", [both])}
    assert declared.keys() == {"prod.group.light", "prod.canary.reader"}
    assert list(declared["prod.group.light"]["deployments"][0]["user_config"]["seats"]) == ["reader"]
    assert set(figures_of({"reader": both}, {"reader": 4})) == {"reader", "canary.reader", "group.light"}
