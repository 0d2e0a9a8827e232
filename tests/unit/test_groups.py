"""Groups of agents, and environments and resources of one: what is declared, what is refused, how many run."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from squadron.actors.agent import Agent, AgentSpec
from squadron.actors.decorators import topic
from squadron.bridge.control.scaling_figures import figures_of
from squadron.bridge.packing.code import check_env
from squadron.bridge.serve.declaration import application, applications, set_by_hand, states_of
from squadron.bridge.serve.seat_faults import FAULT_FOR_S, SeatFaults, with_faults
from squadron.client.declared import DeclaredAgent, changes_of
from squadron.runtime.errors import InvalidAgentError
from squadron.runtime.wire.deployment import AgentState, Deployment, RuntimeEnv, Scale
from tests.unit.test_bridge import Site, deployment_of, site  # noqa: F401  # a fixture
from tests.unit.test_budget import HandClock


def member(agent: str, scale: str = "1..4", **changes: Any) -> Deployment:
    made = Deployment.model_validate(deployment_of(agent, f"{agent}.say") | {"group": "light"})
    return made.model_copy(update={"scale": Scale.parse(scale, made.bounds), **changes})


def told(declared: dict[str, Any], status: str = "RUNNING", running: int = 1) -> dict[str, Any]:
    """What Serve tells of an application."""
    replicas = [{"state": "RUNNING"}] * running
    return {
        "status": status,
        "deployed_app_config": declared,
        "deployments": {"it": {"replicas": replicas, "target_num_replicas": running}},
    }


def test_a_group_is_one_application_whose_processes_learn_of_scales_and_code_in_place() -> None:
    before = [member("one"), member("two"), member("alone", group="")]
    alone, group = applications("t", before)
    assert (alone["name"], group["name"]) == ("t.alone", "t.group.light")
    for change in ({"scale": Scale(minimum=2, maximum=2)}, {"code": {"version": "v2"}}, {"generation": 1}):
        (after,) = applications("t", [before[0], before[1].model_copy(update=change)])
        assert after["args"] == group["args"], "nothing that starts the processes anew"
        assert after["deployments"] != group["deployments"], "but they are told"
    (fewer,) = applications("t", before[:1])
    assert fewer["args"] == group["args"]


def test_a_module_that_is_imported_by_name_starts_the_processes_of_a_group_anew() -> None:
    def by_name(version: str) -> dict[str, str]:
        return {"version": version, "import_path": "shop:Clerk"}

    (before,) = applications("t", [member("one", code=by_name("v1"))])
    (after,) = applications("t", [member("one", code=by_name("v2"))])
    assert before["args"] != after["args"], "a process that has imported it goes on with what it has"


@pytest.mark.parametrize(
    ("scales", "held", "processes"),
    [
        (("1..4", "1..4"), {"one": 0, "two": 0}, 0),
        (("1..4", "1..4"), {"one": 5, "two": 1}, 3),
        (("1..4", "1..2"), {"one": 0, "two": 99}, 2),
        (("0..4", "0..4"), {"one": 0, "two": 0}, 0),
        (("0..4", "3"), {"one": 0, "two": 0}, 0),
        (("0..4", "1"), {"two": 0}, None),
    ],
)
def test_a_group_needs_as_many_processes_as_the_one_of_its_agents_that_needs_most_whatever_serve_keeps(
    scales: tuple[str, str], held: dict[str, int], processes: int | None
) -> None:
    members = {name: member(name, scale) for name, scale in zip(("one", "two"), scales, strict=True)}
    figures = figures_of(members, held)
    assert figures["group.light"] == {"held": processes, "pinned": None}
    (declared,) = applications("t", members.values())
    bounds = declared["deployments"][0]["autoscaling_config"]
    assert bounds["min_replicas"] == max(int(each.partition("..")[0]) for each in scales)
    assert bounds["max_replicas"] >= (processes or 0)


def test_a_group_whose_agents_are_all_pinned_is_pinned() -> None:
    members = {"one": member("one", "2"), "two": member("two", "0")}
    assert figures_of(members, {})["group.light"] == {"held": 0, "pinned": 2}


def test_each_agent_of_a_group_has_a_state_and_what_was_set_on_the_group_is_put_back() -> None:
    members = [member("one"), member("two", "1")]
    (group,) = applications("t", members)
    states = states_of("t", {group["name"]: told(group, running=3)}, members)
    assert {name: (each.running, each.target, each.drifted) for name, each in states.items()} == {
        "one": (3, 3, False),
        "two": (1, 1, False),
    }
    edited = copy.deepcopy(group)
    edited["deployments"][0]["autoscaling_config"]["min_replicas"] = 4
    states = states_of("t", {group["name"]: told(edited)}, members)
    assert all(each.drifted and each.set_by_hand is None for each in states.values())
    assert set_by_hand(edited) is None


def test_an_agent_that_goes_into_a_group_is_awaited_there_and_not_where_it_was() -> None:
    alone, inside = member("one", group=""), member("one")
    (group,) = applications("t", [inside])
    was = application("t", alone)
    both = {was["name"]: told(was), group["name"]: told(group, "DEPLOYING", 0)}
    assert states_of("t", both, [inside])["one"].drifted, "it is still declared where it was"
    both[was["name"]]["status"] = "DELETING"
    state = states_of("t", both, [inside])["one"]
    assert (state.status, state.drifted) == ("DEPLOYING", False)
    assert states_of("t", both, [])["one"].status == "DEPLOYING", "who is not wanted is told as long as it runs"


def test_a_fault_of_a_seat_counts_for_its_code_and_for_a_while() -> None:
    clock = HandClock()
    faults, one = SeatFaults(clock.time), member("one")
    faults.tell("one", "v1", "no disk", "here")
    assert faults.of(one) == ["no disk"]
    assert faults.of(one.model_copy(update={"code": {"version": "v2"}})) == []
    clock.now += FAULT_FOR_S + 1
    assert faults.of(one) == []
    faults.tell("one", "v1", "no disk", "here")
    faults.tell("one", "v1", "", "here")
    assert faults.of(one) == []
    faults.tell("one", "v1", "no disk", "here")
    faults.keep([])
    assert faults.of(one) == []


def test_a_fault_in_one_process_of_a_group_is_not_taken_back_by_another_and_stops_nothing_there() -> None:
    faults, one = SeatFaults(HandClock().time), member("one")
    state = AgentState(status="RUNNING", running=3, target=3)
    faults.tell("one", "v1", "no disk", "here")
    faults.tell("one", "v1", "", "there")
    faults.tell("two", "v1", "no net", "here")
    told = with_faults(state, faults.of(one))
    assert (told.status, told.message, told.running) == ("UNHEALTHY", "no disk", 2)
    for process in ("there", "elsewhere"):
        faults.tell("one", "v1", "no disk", process)
    assert with_faults(state, faults.of(one)).status == "DEPLOY_FAILED"


@pytest.mark.parametrize(
    ("own", "field"),
    [
        ({"num_cpus": 1}, "num_cpus"),
        ({"num_gpus": 0.5}, "num_gpus"),
        ({"resources": {"disk": 1.0}}, "resources"),
        ({"runtime_env": RuntimeEnv(pip=("six",))}, "runtime_env"),
        ({"group": "a.b"}, "group"),
    ],
)
async def test_who_has_resources_or_an_environment_of_its_own_is_in_no_group(
    site: Site,  # noqa: F811
    own: dict[str, Any],
    field: str,
) -> None:
    wanted = member("one", **own)
    with pytest.raises(InvalidAgentError) as told_why:
        wanted.check_group()
    assert told_why.value.field == field
    await site.bridge()
    with pytest.raises(InvalidAgentError, match="one"):
        await site.call("deploy", deployments=[wanted.model_dump(mode="json")])
    assert not site.replicas.applied[-1:] or not site.replicas.applied[-1]


def test_environment_and_resources_reach_ray_and_are_said_only_where_there_are_any() -> None:
    plain, special = member("one", group=""), member("one", group="")
    special = special.model_copy(
        update={"resources": {"disk": 2.0}, "runtime_env": RuntimeEnv(pip=("six==1.17",), env_vars={"A": "b"})}
    )
    (declared,) = application("t", plain)["deployments"]
    assert declared["ray_actor_options"] == {"num_cpus": 0, "num_gpus": 0}
    (declared,) = application("t", special)["deployments"]
    assert declared["ray_actor_options"] == {
        "num_cpus": 0,
        "num_gpus": 0,
        "resources": {"disk": 2.0},
        "runtime_env": {"pip": ["six==1.17"], "env_vars": {"A": "b"}},
    }


@pytest.mark.parametrize(
    ("attribute", "value", "said"),
    [
        ("runtime_env", {"conda": "x"}, "runtime_env.conda"),
        ("runtime_env", {"pip": "six"}, "runtime_env.pip"),
        ("runtime_env", {"env_vars": {"A": 1}}, "runtime_env.env_vars.A"),
        ("runtime_env", {"env_vars": {"A=": "1"}}, "runtime_env.env_vars"),
        ("resources", {"disk": 0}, "resources.disk"),
        ("resources", {"CPU": 1}, "resources.CPU"),
        ("group", 3, "group"),
    ],
)
def test_an_environment_or_resources_that_are_none_are_refused_and_told_where(
    attribute: str, value: Any, said: str
) -> None:
    class Odd(Agent):
        """Is odd."""

        @topic("odd.say")
        async def say(self) -> None:
            """Say it."""

    setattr(Odd, attribute, value)
    with pytest.raises(InvalidAgentError) as told_why:
        AgentSpec.of(Odd)
    assert told_why.value.field == attribute
    assert said in str(told_why.value)


def test_an_environment_with_a_secret_is_refused_without_telling_it() -> None:
    secret = "sk-" + "a1" * 20
    for name in ("API_KEY", "PLAIN"):
        with pytest.raises(InvalidAgentError) as told_why:
            check_env("clerk", RuntimeEnv(env_vars={name: secret}))
        assert secret not in str(told_why.value)
    check_env("clerk", RuntimeEnv(env_vars={"MODE": "fast"}))


def test_a_file_puts_an_agent_into_a_group_or_gives_it_what_is_its_own() -> None:
    alone = member("one", group="")
    grouped = DeclaredAgent.model_validate({"class": "a:One", "group": "light"}).applied(alone)
    (change,) = changes_of({"one": grouped}, {"one": alone})
    assert str(change) == "~ one: group light"
    out = DeclaredAgent.model_validate({"class": "a:One", "group": ""}).applied(grouped)
    assert out == alone
    own = DeclaredAgent.model_validate(
        {"class": "a:One", "resources": {"disk": 1}, "runtime_env": {"pip": ["six"]}, "group": "light"}
    ).applied(alone)
    (change,) = changes_of({"one": own}, {"one": alone})
    assert set(change.fields) == {"resources", "runtime_env", "group"}
    with pytest.raises(InvalidAgentError, match="one has resources of its own"):
        own.check_group()
