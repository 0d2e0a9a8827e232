"""The command line as a whole: global options, and which commands there are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from squadron.cli import (
    asks,
    audit_views,
    dlq,
    doctor,
    environment,
    lite_topics,
    metering,
    negotiate,
    permitted,
    probing,
    replaying,
    run,
    run_trace,
    run_views,
    tail,
    talk,
    top,
    users,
    web_console,
)

EPILOG = (
    "Exit codes: 0 fine · 1 the task ended otherwise than in a result, or a check failed · 2 bad usage or input · "
    "3 nothing runs here, or it can't be reached · 130 interrupted.  "
    "With --json, stdout holds JSON only; progress, logs and errors are on stderr."
)

app = typer.Typer(
    name="squadron",
    help="Agents on Ray, talking over NATS, steered by a supervisor.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        import squadron

        typer.echo(f"squadron {squadron.__version__}")
        raise typer.Exit


@app.callback()
def _globals(
    ctx: typer.Context,
    env: Annotated[
        str | None,
        typer.Option("--env", "-e", help="Environment (default: SQUADRON_ENV, else dev).", metavar="NAME"),
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option("--home", help="Folder of the local servers (default: SQUADRON_HOME).", metavar="DIR"),
    ] = None,
    _: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    # An option that was not given is None, which `Settings.load` takes as "not given".
    ctx.obj = {"env": env, "home": home}


environment.register(app)
talk.register(app)
negotiate.register(app)
run.register(app)
asks.register(app)
dlq.register(app)
run_views.register(app)
replaying.register(app)
metering.register(app)
top.register(app)
web_console.register(app)
run_trace.register(app)
lite_topics.register(app)
tail.register(app)
audit_views.register(app)
users.register(app)
doctor.register(app)
probing.register(app)
# Last: it joins a group.
permitted.register(app)
