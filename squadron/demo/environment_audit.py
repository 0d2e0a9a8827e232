"""The main demo: an audit of the Python environment it runs in, done by five agents and a supervisor."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from squadron.actors.agent import Agent, AgentSpec
from squadron.actors.goals.supervisor import Supervisor
from squadron.actors.thinking.choice import OFFLINE
from squadron.client.squad import Squad
from squadron.demo.agents import Inventory, LicenseClerk, ReportWriter, RiskAssessor, Summarizer
from squadron.demo.report import AuditReport
from squadron.runtime.wire.outcome import Outcome

GOAL = (
    "Audit the dependencies of this Python environment: list every installed package, find its licence, say what "
    "it is for, assess the risk of using it in our Apache-2.0 project, and write the report for the team's review."
)
#: What an LLM must know beyond the goal: whoever asked wants the document itself, not a retelling.
DELIVERY = 'Cover every package. Hand over the complete result of the report writer as the deliverable "report".'
AGENTS: tuple[type[Agent], ...] = (Inventory, LicenseClerk, Summarizer, RiskAssessor, ReportWriter)
TOPICS = ("inventory.list", "license.classify", "package.summarize", "risk.assess", "report.write")
#: How long the supervisor may take, in seconds: an LLM needs some turns of up to a minute.
WITHIN_S = 600.0

EventSink = Callable[[dict[str, Any]], None]
AgentsSink = Callable[[list[dict[str, Any]]], None]


@dataclass(frozen=True)
class Audit:
    """What came of it: the run's outcome, and where the report is (None if none was delivered)."""

    outcome: Outcome
    report: Path | None = None
    data: Path | None = None
    counts: dict[str, Any] = field(default_factory=dict)
    undeployed: tuple[str, ...] = ()

    @property
    def tasks(self) -> dict[str, Any]:
        """Dispatched tasks and their outcomes."""
        run = self.outcome.unwrap() if self.outcome.ok else {}
        tasks: dict[str, Any] = run.get("tasks", {"dispatched": 0, "outcomes": {}})
        return tasks

    @property
    def ok(self) -> bool:
        """Whether there is a report, and each task that was dispatched ended in a result."""
        dispatched, outcomes = self.tasks["dispatched"], self.tasks["outcomes"]
        return self.report is not None and dispatched > 0 and outcomes == {"result": dispatched}


def offline_plan(goal: str) -> list[list[dict[str, Any]]]:
    """The plan of the keyless demo: inventory, a fan-out over all packages, a second one, the synthesis."""
    every_package = {"$from": "inventory#/distributions"}
    by_name = {"distribution": {"$item": "/name"}}
    found = {"distribution": "/distribution", "spdx": "/spdx", "category": "/category"}
    parts = {name: {"$from": name} for name in ("inventory", "licenses", "summaries", "risks")}
    return [
        [{"id": "inventory", "intent": "list all installed Python packages"}],
        [
            {
                "id": "licenses",
                "intent": "find the SPDX licence of a package, with evidence",
                "for_each": every_package,
                "arguments": by_name,
            },
            {
                "id": "summaries",
                "intent": "explain briefly what a package does, from its README",
                "for_each": every_package,
                "arguments": by_name,
            },
        ],
        [
            {
                "id": "risks",
                "intent": "is it safe to depend on this package? unmet requirements, copyleft conflicts",
                "for_each": {"$from": "licenses"},
                "arguments": {name: {"$item": pointer} for name, pointer in found.items()},
            }
        ],
        [
            {
                "id": "report",
                "intent": "write the dependency audit report, Markdown and JSON",
                "arguments": {**parts, "goal": goal},
            }
        ],
        [
            {
                "finish": "Every package was looked at; the report says what needs attention.",
                "deliverables": {"report": {"$from": "report"}},
            }
        ],
    ]


def _silent(_: Any) -> None:
    return None


async def audit(
    squad: Squad,
    *,
    goal: str = GOAL,
    model: str = OFFLINE,
    out: Path,
    within_s: float = WITHIN_S,
    tidy: bool = True,
    on_event: EventSink = _silent,
    on_agents: AgentsSink = _silent,
) -> Audit:
    """Deploy the agents, have the supervisor pursue the goal, and write `out`/report.md and report.json.

    Args:
        model: `offline` carries out a fixed plan with no LLM; any other model plans by itself.
        tidy: undeploy afterwards those agents that did not run before.
        on_event: sees the supervisor's events, and `{"event": "phase", "name": …}` around them.
        on_agents: sees the agents' status while they are deployed.

    Raises:
        DeployError: an agent could not start.
    """
    crew, undeployed = (*AGENTS, Supervisor), list[str]()
    before = {each["agent"] for each in (await squad.status())["agents"]}
    on_event({"event": "phase", "name": "deploy"})
    try:
        await squad.deploy(*crew, on_progress=on_agents)
        on_event({"event": "phase", "name": "run"})
        outcome = await squad.run(
            goal if model == OFFLINE else f"{goal}\n\n{DELIVERY}",
            model=model,
            topics=TOPICS,
            plan=offline_plan(goal) if model == OFFLINE else None,
            within_s=within_s,
            on_event=on_event,
        )
    finally:
        if tidy:
            present = {each["agent"] for each in (await squad.status())["agents"]}
            undeployed += sorted(present.intersection(AgentSpec.of(each).name for each in crew) - before)
            if undeployed:
                on_event({"event": "phase", "name": "undeploy"})
            for name in undeployed:
                await squad.undeploy(name)
    done = await asyncio.to_thread(_write, outcome, out)
    return replace(done, undeployed=tuple(undeployed))


def _write(outcome: Outcome, out: Path) -> Audit:
    delivered = outcome.unwrap()["deliverables"].get("report") if outcome.ok else None
    try:
        report = AuditReport.model_validate(delivered)
    except ValidationError:
        return Audit(outcome)
    out.mkdir(parents=True, exist_ok=True)
    markdown, data = out / "report.md", out / "report.json"
    markdown.write_text(report.markdown, encoding="utf-8")
    data.write_text(json.dumps(report.data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return Audit(outcome, markdown, data, report.data.get("counts", {}))
