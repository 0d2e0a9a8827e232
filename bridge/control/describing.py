"""What the bridge tells of an agent: as it is to run, as it runs, and what waits for it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from squadron.runtime.errors import InvalidSubjectError, NotThereError
from squadron.runtime.ports.queue import Backlog
from squadron.runtime.registry.registry import Registry
from squadron.runtime.wire.deployment import AgentState, Deployment
from squadron.runtime.wire.outcome import VERSION_CHARACTERS
from squadron.runtime.wire.subjects import TaskSubject, TicketSubject, matches

#: How tasks ended, by version of the code and kind of outcome.
Endings = Mapping[str, Mapping[str, int]]


def described(
    deployment: Deployment,
    states: Mapping[str, AgentState],
    backlog: Backlog | None,
    registry: Registry,
    endings: Endings,
) -> dict[str, Any]:
    """An agent, as `status` tells of it.

    Args:
        backlog: None if nothing is known of it.
        endings: while it has had a canary.
    """
    told = {
        "agent": deployment.agent,
        "topics": list(deployment.patterns),
        **_version(deployment, states, registry),
        "bounds": str(deployment.bounds),
        "group": deployment.group,
        "waiting": None if backlog is None else backlog.waiting,
        "taken": None if backlog is None else backlog.taken,
        "lapsed": registry.lapsed(deployment.agent),
        "canary": None,
    }
    if (canary := deployment.canary) is not None:
        stable, tried = (_endings(each, endings) for each in (deployment, canary))
        told["canary"] = {
            "agent": canary.agent,
            "weight": canary.weight,
            "promoted": deployment.is_promoted,
            **_version(canary, states, registry),
            "outcomes": tried,
            "stable_outcomes": stable,
        }
    return told


def _version(deployment: Deployment, states: Mapping[str, AgentState], registry: Registry) -> dict[str, Any]:
    """One version: how many replicas it is to have, and which it has."""
    state = states.get(deployment.known_as, AgentState(status="NOT_STARTED"))
    is_canary = deployment.weight is not None
    present = {name: it for name, it in registry.replicas(deployment.agent).items() if it.canary == is_canary}
    # Of a group Serve knows the processes, and an agent may not have started in one that runs.
    shares = deployment.group and not is_canary
    return {
        "status": state.status,
        "message": state.message,
        "running": min(state.running, len(present)) if shares else state.running,
        "target": state.target,
        "scale": str(deployment.running_scale),
        "slots": deployment.slots,
        "version": deployment.code["version"],
        "replicas": [{"id": name, **it.model_dump()} for name, it in present.items()],
    }


def _endings(deployment: Deployment, endings: Endings) -> dict[str, int]:
    return dict(endings.get(deployment.code["version"][:VERSION_CHARACTERS], {}))


def served_by(subject: str, deployments: Mapping[str, Deployment]) -> list[str]:
    """The agents that may take what a mailbox's subject holds."""
    try:
        if subject.split(".")[2] == "ticket":
            # Of a conversation in order only the head can be run, however many stand in line behind it.
            name = TicketSubject.parse(subject).mailbox
            return [name] if name in deployments else []
        topic = TaskSubject.parse(subject).topic
    except InvalidSubjectError:
        return []
    return [
        name for name, each in deployments.items() if any(matches(pattern, topic) for pattern in each.patterns)
    ]


def not_deployed(agent: str, deployed: Iterable[str]) -> NotThereError:
    """What to raise of an agent that is not among those which are deployed."""
    known = sorted(deployed)
    near = difflib.get_close_matches(agent, known, n=2)
    likely = f"did you mean {' or '.join(near)}? " if near else ""
    return NotThereError(
        f"no agent {agent!r} is deployed", hint=f"{likely}deployed are {', '.join(known) or 'none'}"
    )


def replaced_by(wanted: Iterable[Deployment], deployed: Mapping[str, Deployment]) -> dict[str, str]:
    """Agents that get the code of another class than before, by name, with what that was."""
    both = [(deployed[each.agent], each) for each in wanted if each.agent in deployed]
    # A release before this one did not say it.
    return {
        new.agent: old.class_path
        for old, new in both
        if old.class_path and new.class_path and old.class_path != new.class_path
    }
