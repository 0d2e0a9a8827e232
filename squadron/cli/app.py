"""The command line as a whole: global options, and which commands there are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from squadron.cli import commands

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
    cls=commands.LazyCommands,
    pretty_exceptions_enable=False,
    # Rich alone would take half the time of `--help`.
    rich_markup_mode=None,
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


commands.register(app)
