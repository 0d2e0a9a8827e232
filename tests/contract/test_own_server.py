"""A server of the user's own: nkeys, and TLS with client certificates."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from urllib.parse import quote

import nkeys
import pytest

from squadron import Settings
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage


@pytest.fixture
def serve(tmp_path):
    """Start a nats-server with `extra` configuration; returns its `host:port`."""
    servers = []

    def start(extra: str) -> str:
        config = tmp_path / "nats.conf"
        config.write_text(
            f'listen: "127.0.0.1:-1"\nports_file_dir: "{tmp_path}"\n'
            f'jetstream {{ store_dir: "{tmp_path}/js" }}\n{extra}'
        )
        servers.append(subprocess.Popen([str(embedded.find_binary()), "-c", str(config)]))
        give_up_at = time.monotonic() + 10
        while not (ports := list(tmp_path.glob("*.ports"))) or not ports[0].read_text():
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        return str(json.loads(ports[0].read_text())["nats"][0]).rpartition("/")[2]

    yield start
    for server in servers:
        server.kill()
        server.wait()


async def works(settings: Settings) -> bool:
    wiring = await Wiring.open(settings, AgentIdentity(id="test"), create=True)
    key = wiring.ports.subjects.lite("test", "one")
    await wiring.ports.lite.append(key, b"stored")
    entry = await wiring.ports.lite.last(key)
    await wiring.aclose()
    return entry is not None and entry.data == b"stored"


async def test_an_nkey_seed_file_signs_in(serve, tmp_path):
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(seed).public_key.decode()
    address = serve(f"authorization {{ users: [ {{ nkey: {public} }} ] }}\n")
    file = tmp_path / "user.nk"
    file.write_bytes(seed)
    assert await works(Settings.load({}, home=tmp_path, nats_url=f"nats://{address}", nats_nkey_seed_file=file))


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl to make certificates")
async def test_tls_with_a_client_certificate_signs_in(serve, tmp_path):
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True)

    names = "subjectAltName=IP:127.0.0.1,DNS:localhost"
    openssl(
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca"
    )
    for who in ("server", "client"):
        openssl(
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            f"{who}.key",
            "-out",
            f"{who}.csr",
            "-subj",
            f"/CN={who}",
        )
        (tmp_path / "names").write_text(names)
        signed = (
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-extfile",
            "names",
            "-out",
            f"{who}.pem",
        )
        openssl("x509", "-req", "-in", f"{who}.csr", *signed)
    files = {name: tmp_path / name for name in ("ca.pem", "server.pem", "server.key")}
    address = serve(
        f'tls {{ cert_file: "{files["server.pem"]}", key_file: "{files["server.key"]}",'
        f' ca_file: "{files["ca.pem"]}", verify: true }}\n'
    )
    settings = Settings.load(
        {},
        home=tmp_path,
        nats_url=f"tls://{address}",
        nats_tls_ca=files["ca.pem"],
        nats_tls_cert=tmp_path / "client.pem",
        nats_tls_key=tmp_path / "client.key",
    )
    assert await works(settings)


async def test_large_payloads_pass_a_server_that_takes_only_small_messages(serve, tmp_path):
    address = serve("max_payload: 64KB\n")
    wiring = await Wiring.open(
        Settings.load({}, home=tmp_path, nats_url=f"nats://{address}"), AgentIdentity(id="test"), create=True
    )
    for size in (59_000, 61_000, 64_000, 3_000_000):
        message = AgentMessage.new("task", AgentIdentity(id="test"), {"text": "x" * size})
        sealed = await wiring.ports.claims.seal(message.encode(), keep_s=60)
        await wiring.ports.queue.put(wiring.ports.subjects.task("a.b"), sealed, msg_id=str(size))
        assert await wiring.ports.claims.open(sealed) == message
    await wiring.aclose()


@pytest.mark.parametrize("password", ["a b", "p/q#r?s@t,u:v%20%", "grüß dich"])
async def test_a_password_of_any_characters_signs_in_by_url_and_by_settings(serve, tmp_path, password):
    address = serve(
        f"authorization {{ users: [ {{ user: eve, password: {json.dumps(password, ensure_ascii=False)} }} ] }}\n"
    )
    encoded = f"nats://eve:{quote(password, safe='')}@{address}"
    assert await works(Settings.load({}, home=tmp_path, nats_url=encoded))
    assert await works(Settings.load({}, home=tmp_path, nats_url=f"nats://127.0.0.1:1,{encoded}"))
    env = {"NATS_URL": address, "NATS_USER": "eve", "NATS_PASSWORD": password + "\n"}
    assert await works(Settings.load(env, home=tmp_path))
