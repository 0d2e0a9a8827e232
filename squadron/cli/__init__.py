"""The `squadron` command: everything a person does from a terminal."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the `squadron` script."""
    try:
        from squadron.cli.app import app
        from squadron.cli.frame import start
    except KeyboardInterrupt:  # pressed before there was anything to stop
        sys.exit(130)
    start(app)
