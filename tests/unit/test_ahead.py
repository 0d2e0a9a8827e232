"""What stands in for a package that Ray imports everywhere and hardly anybody uses."""

from __future__ import annotations

import os
import subprocess
import sys

from squadron.bridge.serve.ahead import put_ahead

_PROGRAM = """
import sys
import jsonschema
assert "lark" not in sys.modules
checks = jsonschema.FormatChecker(["iri"])
print(checks.conforms("http://example.org/ö", "iri"), checks.conforms("no iri", "iri"))
import rfc3987_syntax
import rfc3987_syntax.utils
print(len(rfc3987_syntax.RFC3987_SYNTAX_TERMS) > 1)
"""


def test_the_grammar_of_addresses_is_built_when_it_is_used_and_not_when_ray_is_imported() -> None:
    env = os.environ | put_ahead(os.environ)
    done = subprocess.run([sys.executable, "-c", _PROGRAM], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "True"]


def test_what_was_in_the_path_stays_there_behind_it() -> None:
    path = put_ahead({"PYTHONPATH": "/one:/other"})["PYTHONPATH"].split(os.pathsep)
    assert path[1:] == ["/one", "/other"]
