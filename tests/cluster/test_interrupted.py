"""Ctrl-C while a squad starts, or runs: nothing of ours is left, and the environment is as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from squadron.bridge import daemons
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.serve import local

#: Only a hang takes so long, in seconds.
HANG_S = 100.0

PROGRAM = """
    import asyncio, os, signal, sys, time
    from squadron import Squad

    # A program in the background of a script would ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def plain():
        with Squad.up() as squad:
            print("up", flush=True)
            squad.ask("no.body", within_s=600)
            time.sleep(600)

    async def main():
        async with Squad.up() as squad:
            print("up", flush=True)
            await asyncio.sleep(600)

    {before}
    environ = dict(os.environ)
    try:
        {run}
    except KeyboardInterrupt:
        print("interrupted", environ == dict(os.environ), flush=True)
"""


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sq-tests-") as folder:
        yield Path(folder) / "home"
        local.stop(Path(folder) / "home")
        embedded.stop(Path(folder) / "home")


def _left(home: Path) -> list[list[str]]:
    """The command lines of everything that belongs to a home."""
    marks = (str(home), str(local._temp_root(home / "ray")))
    return [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline"])
        if any(mark in word for mark in marks for word in process.info["cmdline"] or [])
        and daemons.is_alive(process)
    ]


def _interrupted(
    home: Path, moment: Callable[[Path, str], bool], *, run: str, before: str = "", times: int = 1
) -> str:
    """Run the program, interrupt it at a moment, and return what it said."""
    program = textwrap.dedent(PROGRAM).format(run=run, before=before)
    told = home.parent / "told"
    with told.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "SQUADRON_HOME": str(home)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    while not moment(home, told.read_text()):
        assert process.poll() is None, told.read_text()
        time.sleep(0.01)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        # Those that come while one is pending are one.
        time.sleep(0.1)
    try:
        process.wait(HANG_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return told.read_text()


MOMENTS: dict[str, Callable[[Path, str], bool]] = {
    "NATS starts": lambda home, _: (home / "nats" / "server.conf").exists(),
    "NATS runs": lambda home, _: embedded.find(home) is not None,
    "Ray starts": lambda home, _: (home / "ray" / "cluster.json").exists(),
    "the bridge starts": lambda home, _: local.find(home) is not None,
}


PLAIN, ASYNC = "plain()", "asyncio.run(main())"


@pytest.mark.parametrize(
    ("moment", "run"),
    [
        ("NATS starts", PLAIN),
        ("NATS starts", ASYNC),
        ("NATS runs", PLAIN),
        ("NATS runs", ASYNC),
        ("Ray starts", PLAIN),
        ("the bridge starts", ASYNC),
    ],
)
def test_ctrl_c_while_a_squad_starts_leaves_nothing(home: Path, moment: str, run: str) -> None:
    told = _interrupted(home, MOMENTS[moment], run=run)

    assert told.endswith("interrupted True\n")
    assert _left(home) == []


def test_ctrl_c_pressed_again_and_again_leaves_nothing_either(home: Path) -> None:
    told = _interrupted(home, MOMENTS["Ray starts"], run=PLAIN, times=4)

    assert "interrupted True\n" in told
    assert _left(home) == []


@pytest.mark.slow
def test_ctrl_c_in_a_program_that_has_imported_ray_leaves_ray_and_the_environment(home: Path) -> None:
    told = _interrupted(home, lambda _, told: "up\n" in told, run=PLAIN, before="import ray")

    assert told == "up\ninterrupted True\n"
    assert _left(home) == []


def test_ctrl_c_in_a_program_with_a_ray_of_its_own_leaves_no_server_of_ours(home: Path) -> None:
    told = _interrupted(
        home,
        lambda _, told: "up\n" in told,
        run=PLAIN,
        before="import ray; ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)",
    )

    assert told.endswith("up\ninterrupted True\n")
    assert _left(home) == []
