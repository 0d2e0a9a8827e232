"""In place of the package of this name, which builds a grammar when it is imported: 2 s of CPU (measured).

jsonschema imports it where it is installed, as it is beside JupyterLab, and Ray imports jsonschema in each of its
processes, which have no use for it. Whoever does gets it on the first use.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import PathFinder
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))
_spec = PathFinder.find_spec("rfc3987_syntax", [each for each in sys.path if os.path.abspath(each) != _HERE])
if _spec is None:
    # In another interpreter, as of a child of a worker.
    raise ModuleNotFoundError("No module named 'rfc3987_syntax'", name="rfc3987_syntax")
#: Its modules are imported from where it is.
__path__ = _spec.submodule_search_locations or []


def is_valid_syntax(term: str, value: str) -> bool:
    """Whether `value` is a `term` of RFC 3987."""
    return bool(__getattr__("is_valid_syntax")(term=term, value=value))


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(importlib.import_module("rfc3987_syntax.syntax_helpers"), name)
