"""The contract holds where everybody signs and believes nothing else: the same tests again, over both buses."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.docs import ROOT

#: Without those that write messages by hand, under names that nobody has a credential for.
SUITES = (
    *("streams", "cut", "resume", "timed_out", "exclusive", "deaf", "sealed", "lite", "lite_feed", "follow"),
    *("events", "vault", "journal", "queue", "notes", "task_ids", "registry", "letters", "delivery"),
    *("ordered", "exchanges", "one_outcome", "goals"),
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("suite", SUITES)
def test_it_holds_where_everything_is_signed(suite: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/contract/test_{suite}.py"]
    environ = os.environ | {"SQUADRON_TEST_SIGNED": "yes"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=800)
    assert done.returncode == 0, done.stdout[-4000:]
