"""Whatever happened in a run, a replay does the same: deaths, failures, cancellations, tools, late ends."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from squadron.replay.player import play
from squadron.replay.recording import Header, RecordedRun, Recording
from squadron.testing import run
from tests.contract.test_loop_stress import SCENES, Scene, Thinker, Worker, perform


def replayed(scene: Scene, thinker: type[Thinker] | type[Worker]) -> None:
    id, log = run(perform(scene, thinker))
    if not log:
        # It died before it had written anything, and was cancelled.
        return
    recorded = RecordedRun(run=id, messages=tuple(log))
    stored = Recording(header=Header(run=recorded.run), runs=(recorded,)).to_jsonl()
    replay = play(Recording.from_jsonl(stored).main)
    assert replay.equal, f"{scene}\n{[entry.kind for entry in recorded.entries]}\n{replay.difference}"
    assert replay.entries == len(recorded.entries)
    # A second time it is the same, to the letter.
    assert play(recorded).requests == replay.requests


@pytest.mark.parametrize("thinker", [Thinker, Worker])
def test_what_was_recorded_is_replayed_equally(thinker: type[Thinker] | type[Worker]) -> None:
    look(thinker, max_examples=30, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("thinker", [Thinker, Worker])
def test_much_that_was_recorded_is_replayed_equally(thinker: type[Thinker] | type[Worker]) -> None:
    look(thinker, max_examples=500)


def look(thinker: type[Thinker] | type[Worker], **how: Any) -> None:
    @settings(deadline=None, suppress_health_check=list(HealthCheck), **how)
    @given(SCENES)
    def whatever(scene: Scene) -> None:
        replayed(scene, thinker)

    whatever()
