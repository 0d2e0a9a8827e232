"""run and demo: a supervisor pursues a goal with the agents there are."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from squadron.cli import frame, spending
from squadron.cli.environment import Json
from squadron.config import Settings
from squadron.runtime.errors import ConfigError, SquadronError
from squadron.runtime.texts import json_text

if TYPE_CHECKING:
    from squadron.actors.agent import Agent
    from squadron.cli.progress import Watch
    from squadron.client.squad import Squad
    from squadron.demo.environment_audit import Audit
    from squadron.runtime.wire.outcome import Outcome

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="openai:NAME, anthropic:NAME or offline, or several with commas to fall back on; by default the one "
        "whose key is set, else offline.",
    ),
]
Keep = Annotated[bool, typer.Option("--keep", help="Leave servers and agents running afterwards.")]

_NO_MODEL = "set OPENAI_API_KEY or ANTHROPIC_API_KEY, or name a model with --model"
OWN_TOPIC = "goal.pursue"
#: How long Ctrl-C waits for the run to be stopped, in seconds: a replica that is there needs less than one.
CANCEL_WITHIN_S = 5.0


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (run, demo):
        app.command()(command)


def choose_model(given: str, settings: Settings) -> str:
    """The model to use: as given, as configured, the provider whose key is set, else `offline`.

    Raises:
        ConfigError: it is no model, or its provider has no key.
    """
    from squadron.actors.thinking.providers import default_model_spec

    keys = os.environ
    chosen = given or settings.model or default_model_spec(keys)
    for model in chosen.split(","):
        # Of OpenAI there are two wires, which a name may choose.
        provider = model.strip().partition(":")[0].partition("-")[0]
        if provider not in ("openai", "anthropic", "offline"):
            raise ConfigError(f"{model!r} names no model", hint="use openai:NAME, anthropic:NAME or offline")
        if provider == "openai" and not keys.get("OPENAI_API_KEY") and settings.ray_address is None:
            raise ConfigError(f"there is no key for {model}", hint="set OPENAI_API_KEY")
    return chosen


# --- run ---------------------------------------------------------------------------------------------


def run(
    ctx: typer.Context,
    goal: Annotated[str, typer.Argument(help="What is to be achieved, in a sentence or more.")],
    model: Model = "",
    topics: Annotated[
        list[str] | None, typer.Option("--topic", help="Topic or pattern it may use; may be given again.")
    ] = None,
    within: Annotated[float, typer.Option("--within", help="Longest run, in seconds.", min=1)] = 600.0,
    max_rounds: Annotated[int, typer.Option("--max-rounds", help="Most turns of the model.", min=1, max=100)] = 12,
    tokens: spending.Tokens = None,
    usd: spending.Usd = None,
    rounds: spending.Rounds = None,
    tasks: spending.Tasks = None,
    hops: spending.Hops = None,
    approve: Annotated[
        list[str] | None, typer.Option("--approve", help="Topic or pattern whose calls people approve first.")
    ] = None,
    trust: Annotated[
        list[str] | None, typer.Option("--trust", help="Topic or pattern whose calls need no approval.")
    ] = None,
    crew: Annotated[bool, typer.Option("--crew", help="Deploy the general crew of LLM agents, too.")] = False,
    keep: Keep = False,
    as_json: Json = False,
) -> None:
    """Have a supervisor pursue a goal with the topics that fit it; without any, with a general crew of LLM agents.

    Prints the answer. What is not running yet is started, and stopped again at the end.
    """
    if not goal.strip():
        raise typer.BadParameter("there is no goal in it", param_hint="GOAL")
    how: dict[str, Any] = {"within_s": within, "max_rounds": max_rounds, "topics": topics or []}
    how |= {"approve": approve or [], "trust": trust or []}
    how["budget"] = spending.budget_of(tokens, usd, rounds, tasks, hops)
    frame.execute(_run(ctx, goal, model, how, crew, keep, as_json), as_json=as_json)


async def _run(
    ctx: typer.Context, goal: str, model: str, how: dict[str, Any], crew: bool, keep: bool, as_json: bool
) -> int:
    from squadron.cli.progress import watching

    settings = frame.settings_of(ctx)
    chosen = choose_model(model, settings)
    if crew and chosen == "offline":
        raise ConfigError("the crew are LLM agents, and there is no LLM", hint=_NO_MODEL)
    if chosen == "offline":
        await _check_offline(settings)
    _say_model(chosen, "without an LLM the goal is only put to the topics that fit best.")
    with watching(f"Pursuing the goal with {chosen}") as watch:
        async with frame.opened(settings, watch, keep=keep) as squad:
            mine = await _deploy_for(squad, goal, how, crew, chosen, watch)
            watch.phase("run")
            watch.budget = how["budget"]
            try:
                async with watch.following(squad), cancelled_with_us(squad, watch):
                    outcome = await squad.run(goal, model=chosen, on_event=watch.event, **how)
            finally:
                # Also when the servers stop with us: what is deployed comes back with their next start.
                for agent in () if keep else mine:
                    await squad.undeploy(agent)
    return show_run(outcome, watch, as_json)


@contextlib.asynccontextmanager
async def cancelled_with_us(squad: Squad, watch: Watch) -> AsyncIterator[None]:
    """At Ctrl-C nobody waits for the run any more: it is stopped, with all that it asked of others."""
    try:
        yield
    except asyncio.CancelledError:
        run = watch.tally.run
        told = f"{run or 'the run'} may go on: squadron runs cancel {run or 'RUN'}"
        if not watch.tally.ticket:
            told = "Nothing was begun."
        else:
            with contextlib.suppress(SquadronError, TimeoutError):
                async with asyncio.timeout(CANCEL_WITHIN_S):
                    await squad.resume(watch.tally.ticket).cancel()
                told = f"Cancelled {run}. It can go on: squadron runs resume {run}" if run else "Cancelled."
        frame.tell(told)
        raise


async def _check_offline(settings: Settings) -> None:
    """Without an LLM a goal needs agents that run already; say so before anything is started for nothing.

    Raises:
        ConfigError: there are none.
    """
    served: list[str] = []
    with contextlib.suppress(frame.NotRunning):
        async with frame.connected(settings) as squad:
            served = [one.topic.name for one in squad.topics() if one.topic.name != OWN_TOPIC]
    if not served:
        raise ConfigError(
            "nothing could pursue this goal: no LLM is configured, and no agents are deployed",
            hint=f"{_NO_MODEL}; or deploy agents: squadron up, squadron deploy module:Agent",
        )


async def _deploy_for(
    squad: Squad, goal: str, how: dict[str, Any], crew: bool, model: str, watch: Watch
) -> list[str]:
    """Deploy what the goal needs and what isn't there: the supervisor, and maybe the crew; returns their names."""
    from squadron.actors.agent import AgentSpec
    from squadron.actors.goals.supervisor import Supervisor
    from squadron.actors.llm.crew import CREW

    before = {each["agent"] for each in (await squad.status())["agents"]}
    fits = [one.topic.name for one in squad.discover(goal) if one.topic.name != OWN_TOPIC]
    with_crew = crew or (model != "offline" and not how["topics"] and not fits)
    needed: tuple[type[Agent], ...] = (Supervisor, *CREW) if with_crew else (Supervisor,)
    specs = [AgentSpec.of(each) for each in needed]
    wanted = [spec for spec in specs if spec.name not in before]
    if wanted:
        watch.phase("deploy")
        await squad.deploy(*(spec.agent_class for spec in wanted), on_progress=watch.agents)
    if with_crew:
        # Named, because a goal need not share a word with what the crew says of itself.
        crew_topics = [one.topic.name for spec in specs for one in spec.topics if one.topic.name != OWN_TOPIC]
        how["topics"] = [*(how["topics"] or fits), *crew_topics]
    elif fits and not how["topics"]:
        frame.tell(f"Topics that fit: {', '.join(fits)}. Name others with --topic; --crew adds general ones.")
    return [spec.name for spec in wanted]


def show_run(outcome: Outcome, watch: Watch, as_json: bool) -> int:
    """Print what came of a run; returns the exit code."""
    from squadron.cli.progress import show_counts, show_timeline
    from squadron.cli.tree import cost

    report = outcome.unwrap() if outcome.ok else {}
    finished = report.get("stopped") == "finished"
    if as_json:
        phases = {"phases": watch.tally.phase_seconds()}
        frame.print_json({**outcome.to_content(), **report, **phases} if report else outcome.to_content())
    console = frame.err()
    show_timeline(watch.tally, console)
    run = report.get("run", watch.tally.run)
    if not outcome.ok:
        console.print(
            f"\n{outcome.kind.replace('_', ' ')}: {outcome.reason}", style="red", soft_wrap=True, markup=False
        )
        if run:
            frame.tell(f"Run: {run}. See what it did: squadron runs show {run}")
        return frame.ENDED_OTHERWISE
    show_counts(report["tasks"], console)
    facts = [
        f"{report['rounds']} round{'s' if report['rounds'] != 1 else ''}",
        *cost(report["tokens"], report["usd"]),
        f"{report['seconds']:.1f} s",
    ]
    frame.tell(f"Run: {run}, {', '.join(facts)}.")
    if not finished:
        frame.tell(f"Stopped: {report['stopped'].replace('_', ' ')}. It can go on: squadron runs resume {run}")
    if not as_json:
        console.print()
        frame.write_whole(report["answer"].rstrip() + "\n")
        for name, value in report["deliverables"].items() if finished else ():
            text = value if isinstance(value, str) else json_text(value, 2)
            frame.write_whole(f"\n--- {name} ---\n{text}\n")
    return frame.OK if finished else frame.ENDED_OTHERWISE


def _say_model(chosen: str, offline: str) -> None:
    if chosen == "offline":
        frame.tell(f"Model: offline planner; no LLM: {offline}")
    else:
        frame.tell(f"Model: {chosen}.")


# --- demo --------------------------------------------------------------------------------------------


def demo(
    ctx: typer.Context,
    goal: Annotated[str, typer.Option("--goal", help="Another goal, for an LLM to plan.")] = "",
    out: Annotated[Path, typer.Option("--out", help="Folder for report.md and report.json.")] = Path(
        "squadron-report"
    ),
    model: Model = "",
    keep: Keep = False,
    as_json: Json = False,
) -> None:
    """Audit the Python environment you are in: a supervisor and five agents list, classify, assess and report.

    With --json the last line on stdout has the counts. Exit code 0: every task ended in a result.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)  # now, not after all the work
    except OSError as error:
        raise typer.BadParameter(f"{out} can't be made: {error.strerror}", param_hint="--out") from None
    frame.execute(_demo(ctx, goal, out.absolute(), model, keep, as_json), as_json=as_json)


async def _demo(ctx: typer.Context, goal: str, out: Path, model: str, keep: bool, as_json: bool) -> int:
    from squadron.cli.progress import watching
    from squadron.demo.environment_audit import GOAL, audit

    settings = frame.settings_of(ctx)
    chosen = choose_model(model, settings)
    frame.tell(f"Goal:  {goal or GOAL}")
    note = "it follows a fixed plan, whatever the goal." if goal else "it follows a fixed plan."
    _say_model(chosen, f"{note} All else is the real thing.")
    with watching("Dependency audit") as watch:
        async with frame.opened(settings, watch, keep=keep) as squad, watch.following(squad):
            done = await audit(
                squad,
                goal=goal or GOAL,
                model=chosen,
                out=out,
                tidy=not keep,
                on_event=watch.event,
                on_agents=watch.agents,
            )
    _show_demo(done, watch, stays=keep or not done.undeployed)
    if as_json:
        frame.print_json(_demo_facts(done, watch))
    return frame.OK if done.ok else frame.ENDED_OTHERWISE


def _demo_facts(done: Audit, watch: Watch) -> dict[str, Any]:
    run = done.outcome.unwrap() if done.outcome.ok else {}
    return {
        "ok": done.ok,
        "tasks": done.tasks,
        "distributions": done.counts.get("distributions", 0),
        "report": str(done.report) if done.report else None,
        "data": str(done.data) if done.data else None,
        "outcome": done.outcome.kind,
        "reason": done.outcome.reason,
        "model": run.get("model", watch.tally.model),
        "rounds": run.get("rounds", watch.tally.round),
        "stopped": run.get("stopped"),
        "tokens": run.get("tokens", 0),
        "retries": sum(call.retries for call in watch.tally.calls.values()),
        "seconds": round(watch.tally.elapsed_s, 2),
        "phases": watch.tally.phase_seconds(),
    }


def _show_demo(done: Audit, watch: Watch, *, stays: bool) -> None:
    """What a person wants to know at the end; `stays` says that the agents are still there to be asked."""
    from squadron.cli.progress import show_counts, show_timeline

    console = frame.err()
    show_timeline(watch.tally, console)
    show_counts(done.tasks, console)
    if not done.outcome.ok:
        console.print(f"{done.outcome.kind}: {done.outcome.reason}", style="red", soft_wrap=True, markup=False)
        return
    run = done.outcome.unwrap()
    if done.report is None:
        console.print("No report was delivered. The supervisor says:", style="red")
        console.print(run["answer"], soft_wrap=True, markup=False)
        return
    _show_findings(done, console)
    shown = os.path.relpath(done.report)
    console.print(
        f"\nReport: [bold]{shown if len(shown) < len(str(done.report)) else done.report}[/]", soft_wrap=True
    )
    following = ["squadron topics", "squadron ask license.classify distribution=ray", "squadron down"]
    if not stays:
        following = [
            "squadron demo --keep, to look around afterwards",
            "squadron up, then deploy agents of your own",
        ]
    console.print(f"Next:   {' · '.join(following)}", soft_wrap=True)


def _show_findings(done: Audit, console: Any) -> None:
    counts = done.counts
    risks = ", ".join(f"{count} {level}" for level, count in reversed(counts.get("risk", {}).items()) if count)
    doubtful = counts.get("doubtful_licenses", 0)
    console.print(
        f"Found: {counts.get('distributions', 0)} distributions; risk: {risks or 'none'}; "
        f"{doubtful} licences unknown or doubtful; {counts.get('not_assessed', 0)} not assessed."
    )
