"""How agents are declared to Ray Serve, and what is read of what was declared and runs.

A declaration says its scale twice: as bounds, by which Serve acts, and in words in `user_config`, which Serve
hands to replicas in place. Who edits bounds by `serve deploy` or over HTTP leaves the words as they are:
where the two differ, somebody set the bounds, and they count as if set by `squadron scale`; where they agree
and are not what is wanted, it is an old declaration that another environment wrote back. In the policy's
arguments, or in `args`, the words would start all replicas anew: those are a part of Serve's version of the
code.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from squadron.runtime.wire.deployment import AgentState, Deployment, Scale

#: How often Serve asks a replica for its health, in seconds: a crashed one is noticed within this.
HEALTH_PERIOD_S = 1.0
#: Between environment and agent in an application's name; neither may contain it.
SEPARATOR = "."
#: Where our declaration says the scale in words, in what Serve lets replicas know.
SCALE = "scale"
#: Stands in for an agent's own bounds, which `auto` would mean; declarations never say that.
NOBODYS = Scale(minimum=0, maximum=1)
#: Where a group's declaration says which agents it has.
SEATS = "seats"
#: What Serve calls on a node to build one of our applications.
IMPORT_PATH = "squadron.bridge.serve.replica"


def applications(environment: str, deployments: Iterable[Deployment]) -> list[dict[str, Any]]:
    """Agents as Serve applications: one for each, for each canary, and for each group."""
    alone, groups = [], dict[str, list[Deployment]]()
    for each in (version for agent in deployments for version in agent.versions):
        # A canary has processes of its own, so that it ends nobody else.
        if each.group and each.weight is None:
            groups.setdefault(each.group, []).append(each)
        else:
            alone.append(application(environment, each))
    return alone + [_group_application(environment, members) for members in groups.values()]


def application(environment: str, deployment: Deployment) -> dict[str, Any]:
    """An agent as a Serve application; a change of `args` or of Ray's options restarts replicas (Ray 2.60)."""
    options: dict[str, Any] = {"num_cpus": deployment.num_cpus, "num_gpus": deployment.num_gpus}
    # Said only where there are any: what was declared by a release that does not know them stays as it is.
    options |= {"resources": deployment.resources} if deployment.resources else {}
    options |= {"runtime_env": deployment.runtime_env.to_ray()} if deployment.runtime_env else {}
    scaled = deployment.running_scale, deployment.slots, deployment.grace_s
    return {
        "name": f"{environment}{SEPARATOR}{deployment.application}",
        "import_path": f"{IMPORT_PATH}:build",
        "route_prefix": None,
        "args": {
            "environment": environment,
            "agent": deployment.agent,
            "code": dict(deployment.code),
            "slots": deployment.slots,
            "grace_s": deployment.grace_s,
            "ordered_by": deployment.ordered_by,
            # Said only where it counts: what was declared by a release that does not know it stays as it is.
            **({"generation": deployment.generation} if deployment.generation else {}),
            **({} if deployment.weight is None else {"canary": True}),
        },
        "deployments": [
            {
                "name": deployment.agent,
                "ray_actor_options": options,
                **_running(environment, deployment.application, *scaled),
            }
        ],
    }


def _group_application(environment: str, members: list[Deployment]) -> dict[str, Any]:
    """The agents of one group as a Serve application: its processes learn in place who has a seat in them.

    Only what a process can't take up restarts it: a module that is imported by name is imported once.
    """
    first = members[0]
    imported: dict[str, set[str]] = {}
    for each in members:
        if path := each.code.get("import_path"):
            imported.setdefault(path.partition(":")[0], set()).add(each.code["version"])
    running = _running(
        environment, first.application, group_scale(members), 1, max(each.grace_s for each in members)
    )
    running["user_config"] |= {SEATS: {each.agent: _seat(each) for each in members}}
    return {
        "name": f"{environment}{SEPARATOR}{first.application}",
        "import_path": f"{IMPORT_PATH}:build_group",
        "route_prefix": None,
        "args": {
            "environment": environment,
            "group": first.group,
            "modules": {name: sorted(versions) for name, versions in sorted(imported.items())},
        },
        "deployments": [{"name": first.group, "ray_actor_options": {"num_cpus": 0}, **running}],
    }


def _seat(deployment: Deployment) -> dict[str, Any]:
    return {
        "code": dict(deployment.code),
        "slots": deployment.slots,
        "grace_s": deployment.grace_s,
        "ordered_by": deployment.ordered_by,
        "generation": deployment.generation,
        # So many of the group's processes have one.
        "most": deployment.scale.maximum,
    }


def group_scale(members: Iterable[Deployment]) -> Scale:
    """How many processes a group has: as many as the one of its agents that needs most."""
    scales = [each.scale for each in members]
    return Scale(
        minimum=max(each.minimum for each in scales),
        maximum=max(each.maximum for each in scales),
        pinned=all(each.pinned for each in scales),
    )


def _running(environment: str, name: str, scale: Scale, slots: int, grace_s: float) -> dict[str, Any]:
    return {
        # What we declared: bounds beside it that say something else were set by somebody else.
        "user_config": {SCALE: str(scale)},
        "autoscaling_config": {
            **_bounds(scale),
            # When to wait is the policy's: Serve's delays end with whatever is needed at that moment.
            "upscale_delay_s": 0,
            "downscale_delay_s": 0,
            "policy": {
                "policy_function": "squadron.bridge.serve.scaling:BacklogPolicy",
                "policy_kwargs": {"environment": environment, "agent": name, "slots": slots},
            },
        },
        # The pump takes what it needs; Serve's own loop must not cut a turn short.
        "graceful_shutdown_timeout_s": grace_s + 10.0,
        "graceful_shutdown_wait_loop_s": 0.1,
        "health_check_period_s": HEALTH_PERIOD_S,
        "health_check_timeout_s": 30.0,
        "max_ongoing_requests": 1000,
        # New code starts before the old is stopped, so the mailbox is never without a reader.
        "max_surge_percent": 100,
        "rolling_update_percentage": 1.0,
    }


def _bounds(scale: Scale) -> dict[str, int]:
    return {"min_replicas": scale.minimum, "max_replicas": max(1, scale.maximum)}


def set_by_hand(told: Mapping[str, Any]) -> Scale | None:
    """The scale that somebody declared to Serve instead of ours: by `serve deploy`, or over its REST API.

    None if these are our own bounds, be they older ones that another environment wrote back, or those of a group,
    which follow from the scales of its agents.
    """
    for each in told.get("deployments") or ():
        ours = (each.get("user_config") or {}).get(SCALE)
        if ours is None or SEATS in each["user_config"]:
            continue
        scaling, fixed = each.get("autoscaling_config"), each.get("num_replicas")
        if scaling is None and isinstance(fixed, int):
            return Scale(minimum=fixed, maximum=fixed, pinned=True)
        found = {name: (scaling or {}).get(name) for name in ("min_replicas", "max_replicas")}
        if None in found.values() or found == _bounds(Scale.parse(ours, NOBODYS)):
            return None
        minimum, maximum = found["min_replicas"], found["max_replicas"]
        return Scale(minimum=minimum, maximum=maximum, pinned=minimum == maximum)
    return None


def says(told: Any, wanted: Any) -> bool:
    """Whether a declaration, as Serve gives it back with things of its own, says all that is wanted."""
    if isinstance(wanted, dict):
        return isinstance(told, dict) and all(name in told and says(told[name], wanted[name]) for name in wanted)
    if isinstance(wanted, list):
        return isinstance(told, list) and len(told) == len(wanted) and all(map(says, told, wanted))
    return bool(told == wanted)


def waits_for(wanted: Deployment, state: AgentState, free: Iterable[Mapping[str, float]]) -> str:
    """In words, what replicas that are to run wait for; empty if they have it, or all run.

    Args:
        free: what each living node has left.
    """
    missing, needs = state.target - state.running, wanted.needs
    if (
        missing <= 0
        or not needs
        or any(all(node.get(name, 0) >= each for name, each in needs.items()) for node in free)
    ):
        return ""
    who = "1 replica waits" if missing == 1 else f"{missing} replicas wait"
    what = " and ".join(f"{each:g} {name}" for name, each in needs.items())
    return f"{who} for {what}: no node has that free, Ray's autoscaler is asked for it."


def agents_of(name: str, told: Mapping[str, Any]) -> list[str]:
    """Whom an application was declared to run; `name` is its own, without the environment's."""
    for each in told.get("deployments") or ():
        if (seats := (each.get("user_config") or {}).get(SEATS)) is not None:
            return list(seats)
    return [name]


def states_of(
    environment: str, details: Mapping[str, Mapping[str, Any]], wanted: Iterable[Deployment]
) -> dict[str, AgentState]:
    """How each agent is doing, by name, and whether it was declared otherwise than is wanted.

    Args:
        details: what Serve tells of the environment's applications.
    """
    wanted = list(wanted)
    by_agent = {each.known_as: each for agent in wanted for each in agent.versions}
    ours = {each["name"]: each for each in applications(environment, wanted)}
    states: dict[str, AgentState] = {}
    strays = []
    for name, each in details.items():
        told, own = each.get("deployed_app_config") or {}, name.partition(SEPARATOR)[2]
        drifted = name in ours and not says(told, ours[name])
        seen = {"drifted": drifted, "set_by_hand": set_by_hand(told) if drifted else None}
        state = state_of(each).model_copy(update=seen)
        for agent in agents_of(own, told):
            deployment = by_agent.get(agent)
            if deployment is None or deployment.application == own:
                states[agent] = state if deployment is None else _seat_state(state, deployment)
            elif state.status != "DELETING":
                strays.append(agent)
    for agent in strays:
        # It went into a group, or out of it, and was declared where it had been.
        states[agent] = states.get(agent, AgentState(status="DEPLOYING")).model_copy(update={"drifted": True})
    return states


def _seat_state(state: AgentState, deployment: Deployment) -> AgentState:
    if not deployment.group or deployment.weight is not None:
        return state
    most = deployment.scale.maximum
    return state.model_copy(update={"running": min(state.running, most), "target": min(state.target, most)})


def state_of(details: Mapping[str, Any]) -> AgentState:
    """How an application is doing, as Serve tells it."""
    deployments = _deployments_of(details)
    told = [details.get("message"), *(each.get("message") for each in deployments)]
    messages = [re.sub(r"\x1b\[[0-9;]*m", "", str(message)) for message in told if message]
    return AgentState(
        status=_word(details["status"]),
        message=" ".join(messages),
        running=len(_running_of(details)),
        target=sum(each.get("target_num_replicas") or 0 for each in deployments),
    )


def placed(details: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """How many replicas of each agent run on each node, by its id; a process of a group counts for all its agents.

    Args:
        details: what Serve tells of the environment's applications.
    """
    found = defaultdict[str, Counter[str]](Counter)
    for name, each in details.items():
        agents = agents_of(name.partition(SEPARATOR)[2], each.get("deployed_app_config") or {})
        for replica in _running_of(each):
            found[str(replica.get("node_id"))].update(agents)
    return {node: dict(agents) for node, agents in found.items()}


def _deployments_of(details: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list((details.get("deployments") or {}).values())


def _running_of(details: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    replicas = [replica for each in _deployments_of(details) for replica in each.get("replicas") or []]
    return [replica for replica in replicas if _word(replica.get("state")) == "RUNNING"]


def _word(state: Any) -> str:
    """Serve gives enums or plain strings, depending on the call."""
    return str(getattr(state, "value", state))
