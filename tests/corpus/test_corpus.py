"""What people write: small agents, deployed by value and by name, and asked over the real codec, turn and pump."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.corpus.case import ANYTHING, Ask, Case, Way
from tests.corpus.cases import CASES

ROOT = Path(__file__).parents[2]

Run = Callable[[Case], dict[Way, dict[str, Any]]]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs one case in all its ways; the process behind it is started once."""
    home = tmp_path_factory.mktemp("corpus")
    # The packages that are "installed on every node" are those of this user.
    environment = os.environ | {"PYTHONUSERBASE": str(home / "user"), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    log = (home / "log").open("w")
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "tests.corpus.worker", str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=environment,
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None

        def answer(case: Case) -> dict[Way, dict[str, Any]]:
            print(case.name, file=worker.stdin, flush=True)
            line = worker.stdout.readline()
            assert line, (home / "log").read_text()[-3000:]
            return json.loads(line)

        yield answer
        worker.stdin.close()
    log.close()


def _parameter(case: Case) -> Any:
    known = [pytest.mark.xfail(strict=True, reason=case.wrong)] if case.wrong else []
    return pytest.param(case, id=case.name, marks=known)


@pytest.mark.parametrize("case", [_parameter(each) for each in CASES])
def test_what_people_write(case: Case, run: Run) -> None:
    answers = run(case)

    assert set(answers) == set(case.ways)
    for way, answer in answers.items():
        assert "broke" not in answer, f"{way}: {answer['broke']}"
        installed = way == "installed"
        refused = case.refused or ("" if installed else case.refused_by_value)
        if refused:
            assert refused in answer.get("refused", "it was deployed"), way
            continue
        assert "refused" not in answer, f"{way}: {answer['refused']}"
        assert answer["by_name"] == (installed and not case.by_value), way
        for expected, ended in zip(case.asks, answer["asks"], strict=True):
            _hold(way, expected, ended)
        assert answer["problems"] == [], way


def _hold(way: Way, expected: Ask, ended: dict[str, Any]) -> None:
    where = f"{way}: {expected.content!r} ended as {ended}"
    assert ended["ends"] == expected.ends, where
    assert expected.says in ended["says"], where
    if expected.ends == "result" and expected.gives is not ANYTHING:
        # As text, where 1, 1.0 and true are three things, and so are 0.0 and -0.0.
        assert json.dumps(ended["gives"], sort_keys=True) == json.dumps(expected.gives, sort_keys=True), where
    if expected.chunks is not None:
        assert json.dumps(ended["chunks"]) == json.dumps(expected.chunks), where


def test_the_corpus_is_what_it_claims_to_be() -> None:
    twice = [name for name, count in Counter(each.name for each in CASES).items() if count > 1]
    assert twice == []
    assert len(CASES) >= 130
    for each in CASES:
        assert each.asks or each.refused, f"{each.name!r} expects nothing"
