"""Which commands there are, each loaded when it is used: `--help` and a command load no other's modules."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

#: Name → the modules of `squadron.cli` that register it, by blanks, and what the list of commands says of it.
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("environment", "Bring NATS, Ray and the bridge up, and leave them running."),
    "down": ("environment", "Stop the local servers; on a cluster of your own, only our agents and the bridge."),
    "status": ("environment", "Show agents, replicas and what waits in their mailboxes."),
    "deploy": ("environment", "Run agents; a name that runs already gets the new code in place."),
    "undeploy": (
        "environment",
        "Stop agents after their running turns; what waits in a mailbox is kept for their return.",
    ),
    "scale": (
        "environment",
        "Set how many replicas run, in place: a number, bounds, or auto for the agent's own bounds.",
    ),
    "canary": (
        "canary",
        "Show both versions of an agent that has a canary, or give it another share, promote or abort it.",
    ),
    "rotate-key": (
        "securing",
        "Give agents, or ourselves, new keys for sealed payloads; what was sealed for the old ones still opens.",
    ),
    "topics": ("topic_views", "List what can be asked now, or find it by intent (best first)."),
    "ask": ("talk", "Send one task and print its result."),
    "negotiate": (
        "negotiate",
        "Have agents bid for a task, give it to the best, on failure to the next, and print the result.",
    ),
    "run": (
        "run",
        "Have a supervisor pursue a goal with the topics that fit it; without any, with a general crew of LLM "
        "agents.",
    ),
    "demo": (
        "run",
        "Audit the Python environment you are in: a supervisor and five agents list, classify, assess and report.",
    ),
    "asks": ("asks", "List what waits for people, oldest first."),
    "answer": ("asks", "Answer a question, or approve a call."),
    "replay": ("replaying", "Run a run anew; the old one is not touched."),
    "top": ("top", "Show agents, what waits for them, how fast they work and what fails, from their heartbeats."),
    "console": (
        "web_console",
        "Serve the web console: agents, topics, runs, questions, dead letters, lite topics, events, nodes.",
    ),
    "trace": (
        "run_trace",
        "Show where the time of a run went: its rounds and calls as bars, with what they cost.",
    ),
    "tail": ("tail", "Follow messages as they pass, from now on: tasks, results, events, questions."),
    "doctor": (
        "doctor",
        "Check this machine and what runs on it; each line says what to do if something is missing.",
    ),
    "gateway": (
        "gateway",
        "Serve agents to clients of other protocols, until Ctrl-C or `squadron down`.",
    ),
    "schema": (
        "schema",
        "Print JSON Schemas of what travels, and the AsyncAPI document of its subjects; or write them to files.",
    ),
    "a2a": ("a2a_agents", "A2A agents elsewhere, whose skills are topics."),
    "synadia": ("synadia_peering", "Agents of the Synadia Agent Protocol, as topics: add, list, remove."),
    "mcp": ("mcp_servers", "MCP servers, whose tools are topics: add, list, show, remove."),
    "health": ("probing", "Say whether NATS and the bridge answer: exit code 0 if both do, else 1."),
    "dlq": ("dlq", "Dead letters, messages that were given up: list, show, redrive, drop."),
    "runs": ("run_views", "Runs that think: list, show, resume, cancel, export."),
    "nodes": (
        "node_views",
        "Show the nodes of the Ray cluster: what of each is free, and which replicas run there.",
    ),
    "metrics": (
        "metering",
        "Print all metrics once, in the text format of Prometheus; or write what shows them: grafana, alerts.",
    ),
    "lite": ("lite_topics", "Lite topics, one for each session: list, read, publish, close."),
    "audit": ("audit_views", "The audit trail: what was said, decided and done, and by whom."),
    "auth": ("users permitted", "Credentials: who may use the server, and what in."),
}


class LazyCommands(TyperGroup):
    """The group of all commands. What it holds is a stand-in of each until that is used."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._loaded = set[str]()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command itself, with its options."""
        if cmd_name in COMMANDS and cmd_name not in self._loaded:
            self.commands[cmd_name] = _load(cmd_name)
            self._loaded.add(cmd_name)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands by their stand-ins."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])


def register(app: typer.Typer) -> None:
    """Add a stand-in for each command to `app`, whose group is to be `LazyCommands`."""
    for name, (_, about) in COMMANDS.items():
        app.command(name, help=about)(_stand_in)


def _stand_in() -> None:
    raise AssertionError("a command is loaded before it runs")


def _load(name: str) -> Any:
    holder = typer.Typer(rich_markup_mode=None)
    for module in COMMANDS[name][0].split():
        import_module(f"squadron.cli.{module}").register(holder)
    return get_group(holder).commands[name]
