"""The `squadron` command: everything a person does from a terminal."""

from __future__ import annotations

import gc
import sys

#: Objects made before garbage is looked for: those that imports make, two hundred thousand, are none.
_GARBAGE = 300_000


def main() -> None:
    """Entry point of the `squadron` script."""
    gc.set_threshold(_GARBAGE)
    try:
        from squadron.cli.app import app
        from squadron.cli.ending import start
    except KeyboardInterrupt:  # pressed before there was anything to stop
        sys.exit(130)
    try:
        start(app)
    finally:
        # What is there at the end is not looked through once more: a tenth of what an ask takes (measured).
        gc.freeze()
