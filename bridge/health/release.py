"""Which release of Squadron this process runs."""

from __future__ import annotations

import importlib.metadata


def release() -> str:
    """Version of the installed package."""
    return importlib.metadata.version("squadron-ray")
