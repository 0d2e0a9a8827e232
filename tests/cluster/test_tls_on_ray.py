"""Mutual TLS on a real Ray: bridge and replicas read the files that the settings name, or those of the home."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from squadron import Agent, Settings, Squad, topic
from squadron.bridge.auth.certificates import CertificateAuthority
from squadron.bridge.auth.server_conf import Login, accounts
from squadron.bridge.jetstream.link.at_home import tls_folder
from squadron.servers import stop_local
from tests.contract.own_server import OwnServer

pytestmark = pytest.mark.slow


class Parrot(Agent):
    """Says it again."""

    @topic("parrot.say")
    async def say(self, text: str) -> str:
        return text


async def test_replicas_reach_a_server_of_ones_own_that_wants_certificates(cluster: Squad, tmp_path: Path) -> None:
    with CertificateAuthority.open(tmp_path) as authority:
        made, client = authority.for_server(["127.0.0.1"]), authority.for_client("squadron")
    conf = {"cert_file": str(made.cert), "key_file": str(made.key), "ca_file": str(authority.path), "verify": True}
    keeper = accounts([Login("keeper", None, password="hush")])
    server = OwnServer(tmp_path, f"tls: {json.dumps(conf)}\n{keeper}")
    server.start()
    (tmp_path / "password").write_text("hush")
    settings = dataclasses.replace(
        cluster.settings,
        env=f"tls-{uuid.uuid4().hex[:6]}",
        nats_url=server.url.replace("nats:", "tls:"),
        nats_user="keeper",
        nats_password=f"file:{tmp_path / 'password'}",
        nats_tls_ca=authority.path,
        nats_tls_cert=client.cert,
        nats_tls_key=client.key,
    )
    try:
        async with Squad.up(settings) as squad:
            await squad.deploy(Parrot)
            assert (await squad.ask("parrot.say", {"text": "x" * 2_000_000})).unwrap() == "x" * 2_000_000
            await squad.undeploy("parrot")
    finally:
        server.stop()


# Three starts of the servers, of up to a minute each on a machine that is full.
@pytest.mark.timeout(400)
def test_up_with_mutual_tls_serves_agents_and_says_where_the_files_are(tmp_path: Path) -> None:
    def squadron(*arguments: str) -> str:
        program = (sys.executable, "-c", "from squadron.cli import main; main()")
        command = [*program, "--home", str(tmp_path), *arguments]
        ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    settings = Settings.load({}, home=tmp_path)
    try:
        squadron("auth", "init")
        up = json.loads(squadron("up", "--mutual-tls", "--json"))
        assert up["nats"].startswith("127.0.0.1") or up["nats"].startswith("tls://")
        files = {"NATS_CA": "ca.pem", "NATS_CERT": "embedded-user.pem", "NATS_KEY": "embedded-user.key"}
        assert up["nats_tls"] == {name: str(tls_folder(tmp_path) / file) for name, file in files.items()}
        squadron("deploy", "tests.cluster.test_tls_on_ray:Parrot")
        assert "hello" in squadron("ask", "parrot.say", "text=hello")
        checks = {each["name"]: each for each in json.loads(squadron("doctor", "--json"))["checks"]}
        assert checks["tls"]["level"] == "ok"
        assert "and we have one" in checks["tls"]["found"]
        # It stays so until it is told otherwise.
        squadron("down")
        assert json.loads(squadron("up", "--json"))["nats_tls"] == up["nats_tls"]
        squadron("down")
        assert "nats_tls" not in json.loads(squadron("up", "--no-tls", "--json"))
    finally:
        asyncio.run(asyncio.to_thread(stop_local, settings))
