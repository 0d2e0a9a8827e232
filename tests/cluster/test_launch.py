"""`cluster-local.yaml`, launched by `ray up` over ssh on machines that are namespaces of this one, and used."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.machines import Machines, are_possible
from tests.docs import blocks

ROOT = Path(__file__).parents[2]
YAML = ROOT / "docs" / "deploy" / "cluster-local.yaml"
UP_WITHIN_S, COMMAND_WITHIN_S = 300, 120

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not are_possible(), reason="it takes root, namespaces, sshd and rsync"),
]


class Launcher:
    """Ray's command line at somebody's desk, from where the machines are reached by ssh."""

    def __init__(self, folder: Path, machines: Machines) -> None:
        self._folder = folder
        self._home = folder / "desk"
        for name in (".ray/auth_token", ".squadron/nats_token"):
            path = self._home / name
            path.parent.mkdir(parents=True)
            path.write_text(secrets.token_hex(32))
        self.config = self._config(machines)

    def _config(self, machines: Machines) -> Path:
        """The file as it is, for these machines; instead of installing from an index they take this checkout."""
        config: dict[str, Any] = yaml.safe_load(YAML.read_text())
        head, *workers = machines.addresses
        config["provider"] |= {"head_ip": head, "worker_ips": workers}
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(machines.key)}
        config |= {"min_workers": len(workers), "max_workers": len(workers)}
        (place,) = [at for at, each in enumerate(config["setup_commands"]) if "pip install" in each]
        venv = Path(sys.executable).parent.parent
        config["setup_commands"][place] = f"[ -e ~/.squadron/venv ] || ln -s {venv} ~/.squadron/venv"
        written = self._folder / "cluster.yaml"
        written.write_text(yaml.safe_dump(config))
        return written

    def ray(self, command: str, *words: str, within_s: float = COMMAND_WITHIN_S) -> str:
        """What a command of Ray prints."""
        program = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
        env = {"HOME": str(self._home), "PATH": os.environ["PATH"], "RAY_USAGE_STATS_ENABLED": "0"}
        # As the head of the file says: the second autoscaler starts no worker of the local provider.
        env["RAY_UP_enable_autoscaler_v2"] = "0"
        done = subprocess.run(
            [*program, command, str(self.config), *words],
            env=env,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
        return done.stdout


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sqm-", ignore_cleanup_errors=True) as made:
        yield Path(made)


@pytest.fixture(scope="module")
def machines(folder: Path) -> Iterator[Machines]:
    with Machines(folder, 2) as running:
        yield running


@pytest.fixture(scope="module")
def launcher(folder: Path, machines: Machines) -> Launcher:
    launched = Launcher(folder, machines)
    launched.ray("up", "--yes", "--no-config-cache", within_s=UP_WITHIN_S)
    return launched


#: What is on the head: an agent, a job that asks it, and a wait for the worker, which the head starts by ssh.
FILES = {
    "harbour/harbour.py": """
        import platform

        from squadron import Agent, topic


        class Pilot(Agent):
            num_cpus = 1

            @topic("ship.dock")
            async def dock(self, ship: str) -> str:
                return f"{ship} is in at {platform.node()}"
        """,
    "harbour/job.py": """
        from squadron import Squad

        with Squad.connect() as squad:
            print(squad.ask("ship.dock", {"ship": "Argo"}).unwrap())
        """,
    "wait.py": """
        import pathlib
        import time

        import ray

        ray.init("auto", logging_level="ERROR")
        give_up_at = time.monotonic() + 150
        while sum(node["Alive"] for node in ray.nodes()) < 2:
            if time.monotonic() > give_up_at:
                logs = pathlib.Path("/tmp/ray/session_latest/logs")
                raise SystemExit("".join(each.read_text()[-4000:] for each in logs.glob("monitor.*")))
            time.sleep(0.5)
        """,
}
SHELL = ". ~/.squadron/env.sh; export RAY_ADDRESS=auto; cd ~/harbour; "


def test_the_cluster_comes_up_by_ssh_is_used_from_its_head_and_goes_down(
    machines: Machines, launcher: Launcher
) -> None:
    for name, text in FILES.items():
        (machines.home(0) / name).parent.mkdir(exist_ok=True)
        (machines.home(0) / name).write_text(textwrap.dedent(text))
    machines.run(0, SHELL + "python ~/wait.py")

    # There is room for it on the worker only.
    told = machines.run(0, SHELL + "squadron deploy harbour:Pilot && squadron ask ship.dock ship=Beagle")
    assert "Beagle is in at machine-1" in told

    (submit,) = [each.text for each in blocks("sh") if each.text.startswith("ray job submit")]
    assert "Argo is in at machine-1" in machines.run(0, SHELL + submit)

    (agent,) = json.loads(machines.run(0, SHELL + "squadron status --json"))["agents"]
    assert (agent["agent"], agent["running"]) == ("pilot", 1)
    assert "pilot" in launcher.ray("exec", "RAY_ADDRESS=auto squadron status")
    assert "apt-get install" in (machines.home(1) / "sudo.log").read_text()

    launcher.ray("down", "--yes")
    assert "raylet" not in machines.run(0, "ps ax -o args | grep [r]aylet/raylet || true")
