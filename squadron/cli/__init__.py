"""The `squadron` command: everything a person does from a terminal."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `squadron` script."""
    from squadron.cli.app import app
    from squadron.cli.frame import start

    start(app)
