"""`docs/deploy/docker-compose.yml`: what Compose's schema, Ray, a nats-server and our settings say of it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from ray.scripts import scripts

from squadron import Settings
from squadron.bridge.jetstream.link.embedded import find_binary
from squadron.cli.commands import COMMANDS
from squadron.config import VARIABLES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "deploy"
SCHEMA = ROOT / "tests" / "data" / "compose" / "compose-spec.json"
#: Variables of Ray's own.
RAY = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / "docker-compose.yml").read_text())
    return loaded


def commands(service: dict[str, Any]) -> list[list[str]]:
    """The programs that a service runs, each with its arguments."""
    words: list[str] = service["command"]
    if words[:2] != ["sh", "-c"]:
        return [words]
    parts = re.split(r"&&|;|\bdo\b|\bwhile\b", words[2])
    return [shlex.split(re.sub(r"^\s*[A-Z_]+=\S+", "", part)) for part in parts if part.strip()]


def test_it_is_what_the_schema_of_compose_files_asks_for(compose: dict[str, Any]) -> None:
    schema = jsonschema_rs.validator_for(json.loads(SCHEMA.read_text()))

    assert [error.message for error in schema.iter_errors(compose)] == []
    assert not schema.is_valid(compose | {"services": {"nats": {"imagine": "squadron"}}})


def test_ray_is_started_with_options_that_it_has(compose: dict[str, Any]) -> None:
    known = {option for parameter in scripts.start.params for option in parameter.opts}
    starts = [
        words
        for service in compose["services"].values()
        for words in commands(service)
        if words[:2] == ["ray", "start"]
    ]

    assert len(starts) == 3
    for words in starts:
        assert {word.partition("=")[0] for word in words[2:]} <= known


def test_only_workers_have_cpus_for_agents_and_there_are_several(compose: dict[str, Any]) -> None:
    without = {
        name
        for name, service in compose["services"].items()
        for words in commands(service)
        if "--num-cpus=0" in words
    }

    assert without == {"head", "orchestrator"}
    assert compose["services"]["worker"]["deploy"]["replicas"] == 2


def test_the_orchestrator_runs_commands_of_ours(compose: dict[str, Any]) -> None:
    ours = [words for words in commands(compose["services"]["orchestrator"]) if words[0] == "squadron"]

    assert [words[1] for words in ours] == ["up", "health"]
    assert {words[1] for words in ours} <= COMMANDS.keys()
    shell = compose["services"]["orchestrator"]["command"][2]
    assert subprocess.run(["sh", "-n", "-c", shell], check=False, timeout=20).returncode == 0


def test_the_settings_of_its_nodes_can_be_used_and_travel(compose: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "nats_url").write_text("nats://token@nats:4222\n")
    for name in ("head", "worker", "orchestrator"):
        given = compose["services"][name]["environment"]
        assert given.keys() <= set(VARIABLES.values()) | RAY
        env = {variable: text for variable, text in given.items() if variable not in RAY}

        settings = Settings.load(env | {"RAY_ADDRESS": "auto"})

        assert settings.secrets() == {}
        assert settings.environ()["NATS_URL"] == "file:/run/secrets/nats_url"


def test_each_secret_is_a_file_that_its_head_tells_how_to_make(compose: dict[str, Any]) -> None:
    used = {name for service in compose["services"].values() for name in service["secrets"]}
    head = (FOLDER / "docker-compose.yml").read_text().partition("\nname:")[0]

    assert used == compose["secrets"].keys()
    for name, secret in compose["secrets"].items():
        assert secret == {"file": f"./secrets/{name}"}
        assert f"> secrets/{name}\n" in head
        assert (
            f"docs/deploy/secrets/{name}"
            not in subprocess.run(
                ["git", "ls-files", "docs/deploy"], cwd=ROOT, capture_output=True, text=True, check=False
            ).stdout
        )


def test_a_nats_server_accepts_its_configuration(compose: dict[str, Any], tmp_path: Path) -> None:
    nats = compose["services"]["nats"]
    assert nats["command"][-1] == "/etc/nats.conf"
    assert "./nats.conf:/etc/nats.conf:ro" in nats["volumes"]
    config, secret = tmp_path / "etc" / "nats.conf", tmp_path / "run" / "secrets" / "nats_auth"
    for path, text in (
        (config, (FOLDER / "nats.conf").read_text().replace('"/data"', f'"{tmp_path}/data"')),
        (secret, 'authorization { token: "0123" }\n'),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    check = [find_binary(), "-t", "-c", config]

    assert subprocess.run(check, check=False, timeout=20).returncode == 0
    secret.unlink()
    assert subprocess.run(check, check=False, timeout=20).returncode != 0


def test_all_containers_are_of_the_one_image(compose: dict[str, Any]) -> None:
    images = {(service["image"], service["build"]["dockerfile"]) for service in compose["services"].values()}

    assert images == {("squadron", "docs/deploy/Dockerfile")}
    assert (ROOT / "docs" / "deploy" / compose["services"]["head"]["build"]["context"]).resolve() == ROOT
    assert (ROOT / "docs/deploy/Dockerfile").is_file()
