"""`docs/deploy/kubernetes`: what KubeRay's schemas, Ray, a nats-server and our settings say of the manifests."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import ray
import yaml
from ray.scripts import scripts
from ray.serve.schema import ServeDeploySchema

from squadron import Settings
from squadron.bridge.jetstream.link.embedded import find_binary
from squadron.cli.commands import COMMANDS
from squadron.config import VARIABLES
from tests.unit.test_compose import commands

FOLDER = Path(__file__).parents[2] / "docs" / "deploy" / "kubernetes"
#: Where KubeRay's CRDs lie (`ray-operator/config/crd/bases` of its repository), if they do.
CRDS = os.environ.get("KUBERAY_CRDS", "")
KINDS = {"RayCluster": "rayclusters", "RayService": "rayservices"}


def _documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def _of_kind(name: str, kind: str) -> dict[str, Any]:
    (found,) = [each for each in _documents(name) if each["kind"] == kind]
    return found


def _cluster(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = _documents(name)[0]["spec"]
    return spec.get("rayClusterConfig", spec)  # type: ignore[no-any-return]


def _pods(name: str) -> list[dict[str, Any]]:
    """What pods are made of."""
    cluster = _cluster(name)
    templates = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    templates += [each["spec"] for each in _documents(name) if each["kind"] == "Deployment"]
    return [each["template"]["spec"] for each in templates]


def _strict(schema: Any) -> None:
    """As the API server reads it: a field that nobody knows is a mistake."""
    if isinstance(schema, dict):
        closed = schema.get("type") == "object" and "properties" in schema
        if closed and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        if schema.get("x-kubernetes-int-or-string"):
            schema.pop("type", None)
    for each in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _strict(each)


@pytest.mark.skipif(not CRDS, reason="KUBERAY_CRDS names no folder with KubeRay's CRDs")
@pytest.mark.parametrize("name", ["raycluster.yaml", "rayservice.yaml"])
def test_it_is_what_the_crds_of_kuberay_ask_for(name: str) -> None:
    manifest = _documents(name)[0]
    crd = yaml.load((Path(CRDS) / f"ray.io_{KINDS[manifest['kind']]}.yaml").read_text(), yaml.CSafeLoader)
    (version,) = [each for each in crd["spec"]["versions"] if each["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    _strict(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    validator = jsonschema_rs.validator_for(schema)

    assert [error.message for error in validator.iter_errors(manifest)] == []
    assert not validator.is_valid(manifest | {"spec": manifest["spec"] | {"imagine": 1}})


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayservice.yaml"])
def test_the_version_of_ray_is_the_one_that_is_installed_and_heads_have_no_cpus(name: str) -> None:
    cluster = _cluster(name)

    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    known = {option.removeprefix("--") for parameter in scripts.start.params for option in parameter.opts}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["rayStartParams"].keys() <= known


def test_both_ways_have_the_same_nodes() -> None:
    assert _cluster("rayservice.yaml") == _cluster("raycluster.yaml")


def test_every_pod_has_settings_that_can_be_used_and_no_secret_in_them() -> None:
    for pod in [*_pods("raycluster.yaml"), *_pods("rayservice.yaml")]:
        (container,) = pod["containers"]
        given = {each["name"]: each.get("value") for each in container["env"]}
        assert given.keys() <= set(VARIABLES.values()) | {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
        assert given.get("RAY_AUTH_TOKEN") is None, "it comes from the secret that KubeRay makes"
        env = {name: text for name, text in given.items() if text and not name.startswith("RAY_")}
        assert env["NATS_URL"] == "file:/run/secrets/squadron/nats_url"
        (mount,) = container["volumeMounts"]
        assert mount["mountPath"] == "/run/secrets/squadron"
        assert pod["volumes"] == [{"name": mount["name"], "secret": {"secretName": "squadron-nats"}}]
        assert Settings.load({name: text for name, text in env.items() if name != "NATS_URL"}).stream_replicas == 3


def test_the_orchestrator_runs_commands_that_there_are() -> None:
    container = _of_kind("raycluster.yaml", "Deployment")["spec"]["template"]["spec"]["containers"][0]
    words = commands(container)
    assert [each[:2] for each in words if each[0] in ("ray", "squadron")] == [
        ["ray", "start"],
        ["squadron", "up"],
        ["squadron", "health"],
    ]
    assert {each[1] for each in words if each[0] == "squadron"} <= COMMANDS.keys()
    assert subprocess.run(["sh", "-n", "-c", container["command"][2]], check=False, timeout=20).returncode == 0
    head = _documents("raycluster.yaml")[0]["metadata"]["name"]
    assert f"--address={head}-head-svc:6379" in shlex.split(container["command"][2])


def test_serve_accepts_what_the_service_declares_and_finds_the_keeper() -> None:
    declared = yaml.safe_load(_of_kind("rayservice.yaml", "RayService")["spec"]["serveConfigV2"])
    schema = ServeDeploySchema.model_validate(declared)
    (application,) = schema.applications
    assert application.import_path == "squadron.bridge.serve.keeper:app"

    from squadron.bridge.serve.keeper import app

    assert app._bound_deployment.name == "bridge"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    written = tmp_path / "nats.conf"
    text = _of_kind("nats.yaml", "ConfigMap")["data"]["nats.conf"]
    written.write_text(
        text.replace('"/data"', f'"{tmp_path}"').replace("/var/run/nats/nats.pid", f"{tmp_path}/pid")
    )
    return written


def test_a_nats_server_accepts_its_configuration(config: Path) -> None:
    env = {"NATS_TOKEN": "abc", "POD_NAME": "nats-0", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [find_binary(), "-t", "-c", config], env=env, capture_output=True, text=True, check=False, timeout=20
    )
    assert done.returncode == 0, done.stderr


def test_the_servers_find_each_other_by_their_names_and_the_urls_lead_to_them() -> None:
    servers, text = _of_kind("nats.yaml", "StatefulSet"), _of_kind("nats.yaml", "ConfigMap")["data"]["nats.conf"]
    name, service = servers["metadata"]["name"], servers["spec"]["serviceName"]
    services = {
        each["metadata"]["name"]: each["spec"] for each in _documents("nats.yaml") if each["kind"] == "Service"
    }

    assert services[service]["clusterIP"] == "None"
    for number in range(servers["spec"]["replicas"]):
        assert f"nats://{name}-{number}.{service}:6222\n" in text
    labels = servers["spec"]["template"]["metadata"]["labels"]
    assert all(each["selector"] == labels for each in services.values())
    head = (FOLDER / "nats.yaml").read_text().partition("\napiVersion")[0]
    assert 'nats_url="nats://$TOKEN@nats:4222"' in head
    assert "nats" in services


def test_the_values_for_helm_say_what_the_manifest_says() -> None:
    values = yaml.safe_load((FOLDER / "nats-values.yaml").read_text())
    text = _of_kind("nats.yaml", "ConfigMap")["data"]["nats.conf"]
    config, container = (
        values["config"],
        _of_kind("nats.yaml", "StatefulSet")["spec"]["template"]["spec"]["containers"][0],
    )

    assert config["cluster"] == {"enabled": True, "replicas": 3}
    assert config["merge"]["max_payload"] == "<< 8MB >>"
    assert "max_payload: 8MB" in text
    merged = config["jetstream"]["merge"]
    assert f"max_buffered_msgs: {merged['max_buffered_msgs']}" in text
    assert f"default_max_consumers: {merged['limits']['default_max_consumers']}" in text
    assert config["merge"]["feature_flags"] == {"js_ack_fc_v2": False}
    assert "js_ack_fc_v2: false" in text
    assert container["image"] == f"nats:{values['container']['image']['tag']}"
    (token,) = [each["valueFrom"] for each in container["env"] if each["name"] == "NATS_TOKEN"]
    assert values["container"]["env"]["NATS_TOKEN"]["valueFrom"] == token
