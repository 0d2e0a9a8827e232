"""metrics: what the bridge shows to Prometheus, and what Grafana and Prometheus are given to show it."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from squadron.cli import frame
from squadron.runtime.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(invoke_without_command=True)
    group.callback()(metrics)
    for command in (grafana, alerts):
        group.command()(command)
    app.add_typer(group, name="metrics")


def metrics(ctx: typer.Context) -> None:
    """Print all metrics once, in the text format of Prometheus; or write what shows them: grafana, alerts."""
    if ctx.invoked_subcommand is None:
        frame.execute(_metrics(ctx), as_json=False)


async def _metrics(ctx: typer.Context) -> int:
    async with frame.connected(frame.settings_of(ctx)) as squad:
        answer = await squad.metrics()
    frame.write(answer)
    return frame.OK


def grafana(
    out: Annotated[Path, typer.Option("--out", help="Folder of dashboards that Grafana reads.", metavar="DIR")],
) -> None:
    """Write two dashboards: one for our own port, and one (squadron_ray…) for what comes through Ray."""
    frame.execute(_grafana(out), as_json=False)


async def _grafana(out: Path) -> int:
    from squadron.bridge.metrics.dashboard import dashboard

    for name, of_ray in (
        ("squadron_grafana_dashboard.json", False),
        ("squadron_ray_grafana_dashboard.json", True),
    ):
        _write(out / name, json.dumps(dashboard(of_ray=of_ray), indent=1) + "\n")
    return frame.OK


def alerts(
    out: Annotated[Path, typer.Option("--out", help="Where to, for rule_files of Prometheus.", metavar="FILE")],
) -> None:
    """Write the alert rules."""
    frame.execute(_alerts(out), as_json=False)


async def _alerts(out: Path) -> int:
    _write(out, files("squadron.bridge.metrics").joinpath("alerts.yml").read_text())
    return frame.OK


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror}", hint="give another --out") from error
    frame.tell(f"Wrote {path}.")
