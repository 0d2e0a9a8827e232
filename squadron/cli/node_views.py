"""nodes: the nodes of the Ray cluster, and what of ours runs on each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from squadron.cli import frame

#: Resources that have a column of their own, or that nobody asks for.
_SHOWN = ("CPU", "memory", "object_store_memory")


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(nodes)


def nodes(
    ctx: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False
) -> None:
    """Show the nodes of the Ray cluster: what of each is free, and which replicas run there."""
    frame.execute(_nodes(ctx, as_json), as_json=as_json)


async def _nodes(ctx: typer.Context, as_json: bool) -> int:
    async with frame.connected(frame.settings_of(ctx)) as squad:
        found = await squad.nodes()
    if as_json:
        frame.print_json({"nodes": found})
    else:
        _show(found)
    return frame.OK


def _show(found: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("NODE", "ADDRESS", "STATUS", "CPU FREE", "MEMORY FREE", "OTHERS FREE", "RUNS"):
        table.add_column(name, justify="right" if name in ("CPU FREE", "MEMORY FREE") else "left")
    for node in found:
        has, free = node["has"], node["free"]
        others = [f"{name} {_free_of(name, node)}" for name in has if name not in _SHOWN]
        # A bridge of an earlier release does not say what runs where.
        runs = [f"{agent} {count}" for agent, count in sorted(node.get("replicas", {}).items())]
        table.add_row(
            Text(f"{node['name']} (head)" if node["head"] else node["name"]),
            Text(node["address"]),
            Text("alive", "green") if node["alive"] else Text("dead", "red"),
            _free_of("CPU", node),
            f"{free.get('memory', 0) / 1e9:.1f}/{has.get('memory', 0) / 1e9:.1f} GB",
            Text(", ".join(others)),
            Text(", ".join([*(["bridge"] if node.get("bridge") else []), *runs])),
        )
    frame.out().print(table)


def _free_of(name: str, node: Mapping[str, Any]) -> str:
    return f"{node['free'].get(name, 0):g}/{node['has'].get(name, 0):g}"
