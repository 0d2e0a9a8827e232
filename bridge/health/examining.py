"""All checks, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from squadron.bridge.health import agent_checks, bus_checks, work_checks
from squadron.bridge.health.diagnosis import WELL, Diagnosis
from squadron.bridge.health.facts import Facts, WireFacts


@dataclass(frozen=True, slots=True)
class Check:
    """Looks for one sickness.

    Attributes:
        needs: the fact without which nothing can be said; see `Facts`.
        look: tells what is not well.
    """

    name: str
    needs: str
    look: Callable[[Facts], Iterator[Diagnosis]]


CHECKS = (
    Check("nats answers", "bus", bus_checks.check_connection),
    Check("tls", "wire", bus_checks.check_wire),
    Check("bridge", "bridge", agent_checks.check_bridge),
    Check("jetstream", "bus", bus_checks.check_jetstream),
    Check("least privilege", "account", bus_checks.check_accounts),
    Check("storage", "storage", bus_checks.check_storage),
    Check("disk of the store", "free_bytes", bus_checks.check_disk),
    Check("streams", "streams", bus_checks.check_streams),
    Check("slow consumers", "consumers", bus_checks.check_consumers),
    Check("clocks", "ahead_s", bus_checks.check_clocks),
    Check("releases", "replicas", agent_checks.check_releases),
    Check("agents", "agents", agent_checks.check_agents),
    Check("topics", "unserved", agent_checks.check_topics),
    Check("pinned at 0", "agents", agent_checks.check_pinned),
    Check("backlogs", "agents", agent_checks.check_backlogs),
    Check("restarts", "agents", agent_checks.check_restarts),
    Check("silent replicas", "replicas", agent_checks.check_silent),
    Check("audit trail", "audit", work_checks.check_audit),
    Check("provider limits", "accounts", work_checks.check_accounts),
    Check("dead letters", "dead", work_checks.check_dead_letters),
    Check("runs", "stale_runs", work_checks.check_runs),
    Check("questions", "questions", work_checks.check_questions),
)


def examine(facts: Facts) -> list[Diagnosis]:
    """What is well, what is not, and what could not be looked at, in the order of `CHECKS`."""
    diagnoses, unseen = list[Diagnosis](), list[str]()
    for check in CHECKS:
        found = list(check.look(facts)) if facts.bus.fault is None or check.needs in ("bus", "bridge") else []
        if found:
            diagnoses += found
        elif facts.bus.fault is None and _is_known(facts, check):
            diagnoses.append(Diagnosis(check.name, "ok", _fine(facts, check.name)))
        elif _should_be_known(facts, check):
            unseen.append(check.name)
    if unseen:
        why = "; ".join(sorted({f"{name}: {reason}" for name, reason in facts.unknown.items()}))
        found_out = f"{', '.join(unseen)}" + (f" ({why})" if why else "")
        diagnoses.append(
            Diagnosis("not looked at", "warn", found_out, "what stands above comes first; then try again")
        )
    return diagnoses


def _is_known(facts: Facts, check: Check) -> bool:
    return getattr(facts, check.needs) is not None


def _should_be_known(facts: Facts, check: Check) -> bool:
    # Of a server of the user's own nobody knows the disk.
    return check.needs != "free_bytes" or check.needs in facts.unknown


def _fine(facts: Facts, name: str) -> str:
    match name:
        case "nats answers":
            return f"at {facts.bus.address}, nats-server {facts.bus.version}"
        case "tls" if facts.wire is not None:
            return _wire(facts.wire)
        case "bridge":
            agents = (facts.bridge or {}).get("agents", ())
            environment = (facts.bridge or {}).get("environment", "")
            many = f"{len(agents)} agent{'s' if len(agents) != 1 else ''}"
            return f"answers for environment {environment}: {many} deployed"
        case "audit trail" if facts.audit is not None:
            return "off" if facts.audit.mode == "off" else f"{facts.audit.mode}, {facts.audit.entries:,} entries"
        case "dead letters" if facts.dead is not None:
            return f"{sum(facts.dead.by_agent.values()):,}"
        case "questions" if facts.questions is not None:
            return f"{len(facts.questions)} wait for people"
    return WELL


def _wire(wire: WireFacts) -> str:
    if not wire.tls:
        return "none, and none is needed: the server is on this machine"
    until = datetime.fromtimestamp(wire.ends_at, UTC).date()
    return f"the server's certificate is good until {until}" + (", and we have one" if wire.own_ends_at else "")
