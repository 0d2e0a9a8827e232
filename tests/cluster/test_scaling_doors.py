"""Whoever scales an agent, and where: it is the same pin, nobody is restarted for it, and it stays."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from squadron import Agent, Settings, Squad, topic
from squadron.bridge.serve import local
from tests.cluster.conftest import until

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "examples" / "scale.sh"


class Rower(Agent):
    """Rows."""

    slots = 4
    min_replicas, max_replicas = 1, 4

    @topic("row.stroke")
    async def stroke(self) -> int:
        """Pull once."""
        return os.getpid()


async def _rower(squad: Squad) -> dict[str, Any]:
    (found,) = [each for each in (await squad.status())["agents"] if each["agent"] == "rower"]
    return dict(found)


async def _is_at(squad: Squad, scale: str, replicas: int) -> bool:
    rower = await _rower(squad)
    return (rower["scale"], len(rower["replicas"]), rower["running"]) == (scale, replicas, replicas)


def _run(settings: Settings, *words: str, token: bool = True) -> subprocess.CompletedProcess[str]:
    """A command, as somebody runs it who has the cluster's address and its token."""
    found = local.find(settings.home)
    assert found is not None
    env = os.environ | {"DASHBOARD": found.dashboard_url, "RAY_DASHBOARD_ADDRESS": found.dashboard_url}
    env |= {"SQUADRON_ENV": settings.env, "SQUADRON_HOME": str(settings.home)}
    if token:
        env |= {"TOKEN": Path(found.token_path).read_text()} | local.environment(found)
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=False)


def _serve(settings: Settings, *words: str) -> str:
    """What Ray Serve's own command line prints."""
    done = _run(settings, sys.executable, "-c", "from ray.serve.scripts import cli; cli()", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _pids(settings: Settings, title: str) -> list[int]:
    found, pids = local.find(settings.home), list[tuple[int, int]]()
    for process in psutil.process_iter(["cmdline", "ppid"]):
        words = process.info["cmdline"] or [""]
        if words[0].startswith(title) and found and os.getsid(process.pid) == found.session_id:
            pids.append((process.pid, process.info["ppid"]))
    # What one of them starts has its title for a moment.
    return [pid for pid, parent in pids if parent not in dict(pids)]


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_all_ways_to_scale_mean_the_same_pin_and_it_survives_controller_and_bridge(
    squad: Squad, settings: Settings, tmp_path: Path
) -> None:
    await squad.deploy(Rower)
    await until(lambda: _is_at(squad, "1..4", 1))
    first = (await _rower(squad))["replicas"][0]["pid"]

    # Plain HTTP on the dashboard's port: refused without the token, with it a pin.
    refused = await asyncio.to_thread(_run, settings, "bash", str(SCRIPT), "rower", "3", token=False)
    assert refused.returncode != 0
    unknown = await asyncio.to_thread(_run, settings, "bash", str(SCRIPT), "ghost", "3")
    assert "no application" in unknown.stderr
    done = await asyncio.to_thread(_run, settings, "bash", str(SCRIPT), "rower", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    await until(lambda: _is_at(squad, "3", 3))

    # Ray Serve's own command line.
    declared = yaml.safe_load(
        await asyncio.to_thread(_serve, settings, "config", "--name", f"{settings.env}.rower")
    )
    declared["deployments"][0]["autoscaling_config"] |= {"min_replicas": 1, "max_replicas": 2}
    (tmp_path / "serve.yaml").write_text(json.dumps({"proxy_location": "Disabled", "applications": [declared]}))
    await asyncio.to_thread(_serve, settings, "deploy", str(tmp_path / "serve.yaml"))
    await until(lambda: _is_scale(squad, "1..2"))

    # Our command line, and a program; the console calls the same.
    done = await asyncio.to_thread(_run, settings, sys.executable, "-c", COMMAND, "scale", "rower=2")
    assert done.returncode == 0, done.stderr
    await until(lambda: _is_at(squad, "2", 2))
    assert await squad.scale("rower", 3) == "3"
    await until(lambda: _is_at(squad, "3", 3))
    assert first in {each["pid"] for each in (await _rower(squad))["replicas"]}, "nobody was restarted for it"

    for title in ("ray::ServeController", "ray::BridgeActor"):
        (victim,) = _pids(settings, title)
        os.kill(victim, signal.SIGKILL)
        await until(lambda: _is_back(settings, title, victim))  # noqa: B023
        await until(lambda: _is_at(squad, "3", 3))
    assert first in {each["pid"] for each in (await _rower(squad))["replicas"]}


COMMAND = "from squadron.cli import main; main()"


async def _is_scale(squad: Squad, scale: str) -> bool:
    return bool((await _rower(squad))["scale"] == scale)


async def _is_back(settings: Settings, title: str, victim: int) -> bool:
    return bool(set(_pids(settings, title)) - {victim})
