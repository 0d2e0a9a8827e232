"""`cluster.yaml` and its variants: what Ray's launcher, a shell and a nats-server would say of them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private import util

from squadron.bridge.jetstream.link.embedded import find_binary

_ROOT = Path(__file__).parents[2]
_CLUSTER = _ROOT / "cluster.yaml"
_VARIANTS = {name: _ROOT / "docs" / "deploy" / f"cluster-{name}.yaml" for name in ("gcp", "local")}
#: What may be different on Google Cloud and on machines of one's own.
_OWN = {"provider", "auth", "available_node_types", "head_setup_commands", "min_workers", "max_workers"}
_COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(_CLUSTER.read_text())
    return loaded


@pytest.fixture(scope="module")
def prepared(written: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` sees it: with the provider's defaults filled in and the setup commands merged."""
    config: dict[str, Any] = util.prepare_config(json.loads(json.dumps(written)))
    return config


def _run(command: str, home: Path, **env: str) -> None:
    # Ray's launcher wraps each command like this (command_runner._with_interactive).
    wrapped = f"export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore && ({command})"
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], **env}
    subprocess.run(["bash", "-c", wrapped], env=environment, check=True, timeout=20)


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node's home directory with the mounted secrets."""
    for name in (".squadron/nats_token", ".ray/auth_token"):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text(f"{path.name}-0123\n")
    return tmp_path


def _command(commands: list[str], part: str) -> str:
    (found,) = [command for command in commands if part in command]
    return found


def test_rays_schema_and_defaults_accept_it(prepared: dict[str, Any]) -> None:
    util.validate_config(prepared)

    assert prepared["available_node_types"]["worker"]["max_workers"] == 4


def test_no_default_command_of_ray_slips_in(written: dict[str, Any], prepared: dict[str, Any]) -> None:
    assert all(name in written for name in _COMMANDS)
    assert not any("anaconda" in command or "ray-wheels" in command for command in prepared["setup_commands"])


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_is_valid_bash_as_ray_wraps_it(prepared: dict[str, Any], name: str) -> None:
    for command in prepared[name]:
        wrapped = f"export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore && ({command})"
        done = subprocess.run(["bash", "-n", "-c", wrapped], capture_output=True, text=True, check=False)
        # A heredoc that swallowed its end is only a warning for bash.
        assert (done.returncode, done.stderr) == (0, ""), command


def test_the_head_writes_a_config_that_nats_server_accepts(prepared: dict[str, Any], node: Path) -> None:
    _run(_command(prepared["head_start_ray_commands"], "nats.conf <<"), node)

    config = node / ".squadron" / "nats.conf"
    subprocess.run([find_binary(), "-t", "-c", config], check=True, timeout=20)
    text = config.read_text()
    assert 'token: "nats_token-0123"' in text
    assert f'store_dir: "{node}/.squadron/jetstream"' in text
    assert config.stat().st_mode & 0o077 == 0


def test_head_and_worker_learn_the_same_kind_of_nats_url(prepared: dict[str, Any], node: Path) -> None:
    _run(_command(prepared["setup_commands"], "env.sh <<"), node)
    _run(_command(prepared["worker_start_ray_commands"], "nats_url"), node, RAY_HEAD_IP="10.1.2.3")

    url = node / ".squadron" / "nats_url"
    assert url.read_text() == "nats://nats_token-0123@10.1.2.3:4222\n"
    assert url.stat().st_mode & 0o077 == 0
    check = f'[ "$NATS_URL" = "file:{node}/.squadron/nats_url" ] && [ "$RAY_AUTH_MODE" = token ]'
    _run(f". ~/.squadron/env.sh; {check}", node)

    _run(_command(prepared["head_start_ray_commands"], "nats_url"), node)
    assert url.read_text().startswith("nats://nats_token-0123@")
    assert url.read_text().endswith(":4222\n")


def test_the_shell_profile_is_extended_once(prepared: dict[str, Any], node: Path) -> None:
    command = _command(prepared["setup_commands"], ".bashrc")
    _run(command, node)
    _run(command, node)

    assert (node / ".bashrc").read_text() == ". ~/.squadron/env.sh\n"


def test_both_secrets_are_mounted_and_in_no_command(prepared: dict[str, Any]) -> None:
    assert set(prepared["file_mounts"]) == {"~/.ray/auth_token", "~/.squadron/nats_token"}
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in prepared[name] if "ray start" in command]
        assert starts
        assert all(". ~/.squadron/env.sh" in command for command in starts)


@pytest.mark.parametrize("name", sorted(_VARIANTS))
def test_a_variant_is_the_same_cluster_elsewhere(written: dict[str, Any], name: str) -> None:
    variant: dict[str, Any] = yaml.safe_load(_VARIANTS[name].read_text())
    util.validate_config(util.prepare_config(json.loads(json.dumps(variant))))

    assert variant["provider"]["type"] == name
    own = _OWN | (
        {"head_node_type", "initialization_commands", "head_start_ray_commands"} if name == "local" else set()
    )
    for field in written.keys() | variant.keys():
        if field not in own:
            assert variant[field] == written[field], field
    starts = [each.replace(" --num-cpus=0", "") for each in variant["head_start_ray_commands"]]
    assert starts == [
        " ".join(each.split()) if "ray start" in each else each for each in written["head_start_ray_commands"]
    ]


def test_a_head_has_no_cpus_for_agents_wherever_it_is(written: dict[str, Any]) -> None:
    local = yaml.safe_load(_VARIANTS["local"].read_text())
    (start,) = [each for each in local["head_start_ray_commands"] if "ray start" in each]
    assert "--num-cpus=0" in start.split()
    for types in (written, yaml.safe_load(_VARIANTS["gcp"].read_text())):
        assert types["available_node_types"][types["head_node_type"]]["resources"] == {"CPU": 0}
