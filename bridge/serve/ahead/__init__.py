"""What the processes of a local Ray import in place of packages of the same name: this is first in their path."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping

_PACKAGE = "rfc3987_syntax"


def put_ahead(env: Mapping[str, str]) -> dict[str, str]:
    """What to add to an environment, so that Python finds what is here before the packages that are installed."""
    if importlib.util.find_spec(_PACKAGE) is None:
        return {}
    path = os.path.dirname(os.path.abspath(__file__)), env.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join(filter(None, path))}


def stand_in() -> None:
    """Have this process use what is here, if it has not loaded the package already."""
    if _PACKAGE not in sys.modules and importlib.util.find_spec(_PACKAGE) is not None:
        sys.modules[_PACKAGE] = importlib.import_module(f"{__name__}.{_PACKAGE}")
