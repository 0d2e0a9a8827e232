"""up, down, status, deploy, undeploy, scale: what runs, and how much of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from squadron.cli import frame
from squadron.cli.named_agents import named_agents
from squadron.config import Settings
from squadron.runtime.errors import ConfigError, InvalidAgentError, SquadronError

if TYPE_CHECKING:
    from squadron.actors.agent import Agent
    from squadron.client.remote_servers import RemoteServer
    from squadron.client.squad import Squad

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (up, down, status, deploy, undeploy, scale):
        app.command()(command)


# --- up and down -------------------------------------------------------------------------------------


def up(
    ctx: typer.Context,
    tls: Annotated[
        bool | None,
        typer.Option(help="TLS for the local nats-server, by a CA of this home, from now on; or no more."),
    ] = None,
    mutual_tls: Annotated[
        bool, typer.Option("--mutual-tls", help="The same, and the server wants certificates of its clients.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Bring NATS, Ray and the bridge up, and leave them running. Does nothing if they run."""
    frame.execute(_up(ctx, True if mutual_tls else tls, mutual_tls, as_json), as_json=as_json)


async def _up(ctx: typer.Context, tls: bool | None, mutual: bool, as_json: bool) -> int:
    from squadron.cli.progress import watching
    from squadron.cli.securing import choose_tls

    settings = frame.settings_of(ctx)
    if tls is not None:
        await asyncio.to_thread(choose_tls, settings, tls, mutual)
    began = time.monotonic()
    with watching("Bringing the squad up") as watch:
        async with frame.opened(settings, watch) as squad:
            facts = await _addresses(squad) | {"started": squad.brought_up}
            squad.keep_running()
    facts |= {"seconds": round(time.monotonic() - began, 1)}
    if as_json:
        frame.print_json(facts)
    else:
        _show_addresses(facts)
    return frame.OK


async def _addresses(squad: Squad) -> dict[str, Any]:
    from squadron.bridge.jetstream.link.at_home import credentials_of, has_authority, tls_files
    from squadron.views.console_place import ConsolePlace

    settings, answer = squad.settings, await squad.status()
    facts: dict[str, Any] = {"environment": answer["environment"], "home": str(settings.home)}
    facts |= {name: answer.get(name, "") for name in ("nats", "ray", "dashboard", "metrics")}
    if has_authority(settings):
        facts["nats_credentials"] = str(credentials_of(settings.home, settings.env, settings.user))
    elif settings.nats_url is None:
        facts["nats_token_file"] = str(settings.home / "nats" / "endpoint.json")
    if settings.nats_url is None and (files := tls_files(settings)):
        facts["nats_tls"] = files.environ()
    if settings.ray_address is None:
        facts["dashboard_token_file"] = str(settings.home / "ray" / "token")
    if (console := ConsolePlace.find(settings)) is not None:
        facts["console"] = console.url
    return facts | {"agents": [agent["agent"] for agent in answer["agents"]]}


def _show_addresses(facts: dict[str, Any]) -> None:
    from rich.table import Table

    console = frame.out()
    how = f"is up ({facts['seconds']:.1f} s)" if facts["started"] else "runs already"
    console.print(f"Environment [bold]{facts['environment']}[/] {how}.\n")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("NATS", facts["nats"])
    if "nats_token_file" in facts:
        table.add_row("", f"token in {facts['nats_token_file']}")
    if "nats_credentials" in facts:
        table.add_row("", f"credentials in {facts['nats_credentials']}")
    if "nats_tls" in facts:
        table.add_row("", "TLS: " + " ".join(f"{name}={path}" for name, path in facts["nats_tls"].items()))
    table.add_row("Ray", facts["ray"])
    if facts["dashboard"]:
        table.add_row("Dashboard", f"{facts['dashboard']}/#/serve")
        if "dashboard_token_file" in facts:
            table.add_row("", f"asks for a token once: cat {facts['dashboard_token_file']}")
    table.add_row("Console", facts.get("console") or "squadron console")
    if facts["metrics"]:
        table.add_row("Metrics", facts["metrics"])
    table.add_row("Agents", ", ".join(facts["agents"]) or "none yet")
    console.print(table)
    console.print("\nNext: squadron deploy module:Agent · squadron topics · squadron console · squadron down")


def down(
    ctx: typer.Context,
    delete_data: Annotated[
        bool,
        typer.Option("--delete-data", help="Delete what the local servers stored, and the keys of the trail."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Stop the local servers; on a cluster of your own, only our agents and the bridge."""
    frame.execute(_down(ctx, delete_data, as_json), as_json=as_json)


async def _down(ctx: typer.Context, delete_data: bool, as_json: bool) -> int:
    settings = frame.settings_of(ctx)
    if delete_data and settings.nats_url is not None:
        raise ConfigError(
            "--delete-data deletes only what the embedded NATS server stored",
            hint=f"on your own server: nats stream rm squadron-{settings.env}-{{tasks,lite,registry,dead}}",
        )
    from squadron.client.farewell import tell_gone

    stopped = await asyncio.to_thread(_stop, settings)
    if settings.nats_url is not None and (settings.ray_address is not None or "ray" in stopped):
        await tell_gone(settings)
    folders = (
        [path for name in ("nats", "ray", "audit") if (path := settings.home / name).is_dir()]
        if delete_data
        else []
    )
    for folder in folders:
        shutil.rmtree(folder)
    deleted = [str(folder) for folder in folders]
    if as_json:
        frame.print_json({"stopped": stopped, "deleted": deleted})
    else:
        frame.tell(f"Stopped {', '.join(stopped)}." if stopped else "Nothing was running.")
        if deleted:
            frame.tell(f"Deleted {' and '.join(deleted)}.")
    return frame.OK


def _stop(settings: Settings) -> list[str]:
    from squadron.bridge.gateways.running_gateways import stop_gateways
    from squadron.servers import stop_local

    stopped: list[str] = []
    # First: what they would say of servers that go away helps nobody.
    ended = Counter(each.kind for each in stop_gateways(settings.home, settings.env))
    stopped += [f"{many} {kind}{'s' if many != 1 else ''}" for kind, many in ended.items()]
    if settings.ray_address is not None:
        from squadron.bridge.serve import cluster

        cluster.stop_environment(settings)
        stopped.append(f"environment {settings.env} on {settings.ray_address}")
    return stopped + stop_local(settings)


# --- status ------------------------------------------------------------------------------------------


def status(ctx: typer.Context, as_json: Json = False) -> None:
    """Show agents, replicas and what waits in their mailboxes."""
    frame.execute(_status(ctx, as_json), as_json=as_json)


async def _status(ctx: typer.Context, as_json: bool) -> int:
    from squadron.bridge.gateways.running_gateways import running_gateways

    settings = frame.settings_of(ctx)
    async with frame.connected(settings) as squad:
        answer = await squad.status()
        served = [each for each in await squad.remote_servers() if each.kind == "GatewayAgent"]
    gateways = [each.to_dict() for each in running_gateways(settings.home, settings.env)]
    answer["gateways"] = [*gateways, *map(_shown, served)]
    if as_json:
        frame.print_json(answer)
    else:
        _show_status(answer)
        for each in answer["gateways"]:
            serves = "is at" if each["kind"] == "console" else f"serves {', '.join(each['doors'])}"
            where = each["url"] or "on the standard streams or NATS"
            frame.tell(f"{each['kind'].capitalize()} {each.get('pid', 'on the cluster')} {serves} {where}")
    return frame.OK


def _shown(gateway: RemoteServer) -> dict[str, Any]:
    from squadron.bridge.gateways.fronting import GatewayOptions

    options = GatewayOptions.of(gateway.server)
    return {"agent": gateway.agent, "kind": "gateway", "doors": list(options.doors), "url": options.url}


def _show_status(answer: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from squadron.cli.canary import lines as canary_lines

    console = frame.out()
    if sys.stdout.isatty():
        where = [f"{name} {answer[name]}" for name in ("nats", "ray", "dashboard", "metrics") if answer.get(name)]
        head = Text.assemble((answer["environment"], "bold"), f"  {' · '.join(where)}\n")
        console.print(head, soft_wrap=True)
    if not answer["agents"]:
        frame.tell("No agents are deployed: squadron deploy module:Agent")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("AGENT", "STATUS", "REPLICAS", "SCALE", "WAITING", "RUNNING", "TOPICS"):
        table.add_column(name, justify="right" if name in ("WAITING", "RUNNING") else "left")
    for each in answer["agents"]:
        style = "green" if each["status"] == "RUNNING" else "yellow"
        who = f"{each['agent']} ({each['group']})" if each["group"] else each["agent"]
        # The bridge gives what it does not know as None.
        held = ["?" if each[count] is None else str(each[count]) for count in ("waiting", "taken")]
        figures = (f"{each['running']}/{each['target']}", each["scale"], *held)
        cells = map(Text, (*figures, " ".join(each["topics"])))
        table.add_row(Text(who), Text(each["status"], style), *cells)
    console.print(table)
    for each in answer["agents"]:
        if each["canary"]:
            frame.tell(f"{each['agent']} has a canary:")
            for line in canary_lines(each):
                frame.tell(line)
        if each["message"] and each["status"] != "RUNNING":
            frame.tell(f"{each['agent']}: {each['message']}")


# --- agents ------------------------------------------------------------------------------------------


def deploy(
    ctx: typer.Context,
    agents: Annotated[
        list[str] | None, typer.Argument(metavar="MODULE:AGENT...", help="For example my_agents:Analyst.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="A squad as it is to be.", metavar="FILE")
    ] = None,
    diff: Annotated[bool, typer.Option("--diff", help="With -f: only say what would change.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="With -f: undeploy what it does not name.")] = False,
    canary: Annotated[
        str, typer.Option("--canary", help="Beside what runs, with this share of the tasks.", metavar="PERCENT")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="A canary may differ from what callers know.")] = False,
    group: Annotated[str | None, typer.Option("--group", help="Share the processes of that group.")] = None,
    within: Annotated[float, typer.Option("--within", help="How long to wait, in seconds.", min=1)] = 120.0,
    as_json: Json = False,
) -> None:
    """Run agents; a name that runs already gets the new code in place. Modules of this folder are found.

    With `--canary 10%` new code runs beside the old; `squadron canary` shows both, and ends it.

    With `-f squad.yaml` what runs is made as the file declares it; `--diff` exits with 1 if that is anything.
    """
    if file is not None and not agents and group is None:
        if canary or force:
            raise typer.BadParameter("a file says of each agent itself whether it is a canary: `canary: 10`")
        frame.execute(_apply(ctx, file, diff, prune, within, as_json), as_json=as_json)
    if file is not None or diff or prune or not agents:
        raise typer.BadParameter("name agents [--group NAME], or a file: -f squad.yaml [--diff] [--prune]")
    how: dict[str, Any] = {"group": group, "force": force, "within_s": within}
    frame.execute(_deploy(ctx, agents, canary, how, as_json), as_json=as_json)


async def _apply(ctx: typer.Context, file: Path, diff: bool, prune: bool, within_s: float, as_json: bool) -> int:
    from squadron.cli.progress import watching
    from squadron.client.declared import DeclaredSquad

    settings = frame.settings_of(ctx)
    declared = DeclaredSquad.load(file)
    # Before anything is asked or changed.
    declared.specs(_load)
    async with frame.connected(settings) as squad:
        changes = await squad.apply(declared, prune=prune, dry_run=True)
        differs = any(each.what != "keep" for each in changes)
        if not as_json:
            for each in changes:
                frame.out().print(str(each), markup=False, soft_wrap=True)
        if differs and not diff:
            with watching(f"Applying {file.name}") as watch:
                watch.phase("deploy")
                await squad.apply(declared, prune=prune, within_s=within_s, on_progress=watch.agents)
    if as_json:
        frame.print_json({"applied": differs and not diff, "changes": [each.to_dict() for each in changes]})
    elif not differs:
        frame.tell("Nothing to change.")
    return frame.ENDED_OTHERWISE if diff and differs else frame.OK


async def _deploy(ctx: typer.Context, paths: list[str], canary: str, how: dict[str, Any], as_json: bool) -> int:
    from squadron.actors.agent import AgentSpec
    from squadron.cli.canary import percent
    from squadron.cli.progress import watching

    settings, weight = frame.settings_of(ctx), percent(canary) if canary else None
    classes = [_load(path) for path in paths]
    specs = [AgentSpec.of(each) for each in classes]
    async with frame.connected(settings) as squad:
        with watching(f"Deploying {', '.join(spec.name for spec in specs)}") as watch:
            watch.phase("deploy")
            await squad.deploy(*classes, canary=weight, on_progress=watch.agents, **how)
    deployed = [{"agent": spec.name, "topics": [each.topic.name for each in spec.topics]} for spec in specs]
    if as_json:
        frame.print_json({"deployed": deployed})
        return frame.OK
    for each in deployed:
        frame.tell(f"{each['agent']} serves {', '.join(each['topics']) or 'no topics'}")
    return frame.OK


def _load(path: str) -> type[Agent]:
    """Import an agent of the user's; whatever goes wrong in their module is said in one line."""
    from squadron.bridge.packing.code import load_agent

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return load_agent(path)
    except SquadronError:
        raise
    except Exception as error:
        raise InvalidAgentError(f"{path} can't be imported: {type(error).__name__}: {error}") from None


def undeploy(
    ctx: typer.Context,
    agents: Annotated[list[str], typer.Argument(metavar="AGENT...", help="As `squadron status` names them.")],
    as_json: Json = False,
) -> None:
    """Stop agents after their running turns; what waits in a mailbox is kept for their return."""
    frame.execute(_undeploy(ctx, agents, as_json), as_json=as_json)


async def _undeploy(ctx: typer.Context, agents: list[str], as_json: bool) -> int:
    async with frame.connected(frame.settings_of(ctx)) as squad:
        await named_agents(squad, agents)
        for agent in agents:
            await squad.undeploy(agent)
    if as_json:
        frame.print_json({"undeployed": agents})
    else:
        frame.tell(f"Undeployed {', '.join(agents)}.")
    return frame.OK


def scale(
    ctx: typer.Context,
    targets: Annotated[
        list[str], typer.Argument(metavar="AGENT=N|MIN..MAX|auto...", help="For example clerk=2..8.")
    ],
    as_json: Json = False,
) -> None:
    """Set how many replicas run, in place: a number, bounds, or auto for the agent's own bounds."""
    frame.execute(_scale(ctx, targets, as_json), as_json=as_json)


async def _scale(ctx: typer.Context, targets: list[str], as_json: bool) -> int:
    from squadron.runtime.wire.deployment import Scale

    wanted = [target.partition("=") for target in targets]
    if bad := [agent for agent, equals, to in wanted if not (agent and equals and to)]:
        raise ConfigError(f"{bad[0]!r} is not AGENT=SCALE", hint="for example clerk=3, clerk=2..8 or clerk=auto")
    for _, _, to in wanted:  # before the first of them is changed
        Scale.parse(to, Scale(minimum=1, maximum=1))
    async with frame.connected(frame.settings_of(ctx)) as squad:
        await named_agents(squad, [agent for agent, _, _ in wanted])
        scales = {agent: await squad.scale(agent, to) for agent, _, to in wanted}
    if as_json:
        frame.print_json(scales)
    else:
        for agent, now in scales.items():
            frame.tell(f"{agent} runs at {now}")
    return frame.OK
