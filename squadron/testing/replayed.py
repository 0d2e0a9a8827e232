"""Recorded runs as regression tests."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from squadron.actors.agent import Agent
from squadron.replay.exact import play_all
from squadron.replay.player import RunReplay
from squadron.replay.recording import Recording


def replay(recording: str | Path | Recording, agent: str | type[Agent] = "") -> list[RunReplay]:
    """Have the code of today go through a recorded run again, and all runs that it called.

        def test_the_audit_run_is_what_it_was():
            replay("tests/data/audit.jsonl")

    No key, no network, no agents: models, outcomes, people and the clock are as they are recorded.

    Args:
        recording: a file that `squadron runs export` wrote, or what `squad.runs.export` returned.
        agent: the class whose tools count in its runs, as they are now; those that are recorded by default.

    Raises:
        AssertionError: it does otherwise; says where, and shows both sides.
        RecordingError: the file is no whole recording.
    """
    whole = recording if isinstance(recording, Recording) else Recording.load(recording)
    with ThreadPoolExecutor(1) as other:
        # In a thread of its own, as the test may be in an event loop.
        replays = other.submit(play_all, whole, agent).result()
    for each in replays:
        if each.difference is not None:
            raise AssertionError(
                f"{each.run} differs after {each.entries} of {each.of} entries: {each.difference}"
            )
    return replays
