"""schema: what travels, as files from which other languages make types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from squadron.cli import frame
from squadron.runtime.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(schema)


def schema(
    into: Annotated[
        Path | None, typer.Option("--into", help="Write one file each into this folder.", metavar="DIR")
    ] = None,
) -> None:
    """Print JSON Schemas of what travels, and the AsyncAPI document of its subjects; or write them to files."""
    frame.execute(_export(into))


async def _export(into: Path | None) -> int:
    from squadron.views.wire_schemas import async_api, files, schemas

    if into is None:
        frame.print_json({**schemas(), "asyncapi": async_api()})
        return frame.OK
    _write(into, files())
    frame.tell(f"Wrote {len(files())} files to {into}.")
    return frame.OK


def _write(into: Path, texts: dict[str, str]) -> None:
    try:
        into.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (into / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"can't write to {into}: {error.strerror}", hint="name a folder of yours") from None
