"""TLS to a real nats-server: the embedded one, one of the user's own, and each way in which it fails."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from squadron import Settings
from squadron.bridge.auth import certificates
from squadron.bridge.auth.certificates import CertificateAuthority, ends_at, renew_embedded, secure_embedded
from squadron.bridge.health.examining import examine
from squadron.bridge.health.gathering import gather
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.link.at_home import embedded_tls, tls_folder
from squadron.bridge.jetstream.link.dial import connect
from squadron.bridge.jetstream.wiring import Wiring
from squadron.cli.app import app
from squadron.runtime.errors import ConfigError, TlsError
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.servers import Servers
from tests.contract.conftest import until
from tests.contract.own_server import OwnServer

Own = Callable[..., OwnServer]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Own]:
    """Start a nats-server of the user's own, with the home's certificates for `hosts`."""
    servers: list[OwnServer] = []

    def start(*hosts: str, mutual: bool = False, extra: str = "") -> OwnServer:
        with CertificateAuthority.open(tmp_path) as authority:
            made = authority.for_server(hosts or ("127.0.0.1",))
        conf = {"cert_file": str(made.cert), "key_file": str(made.key)}
        users = {"ca_file": str(authority.path), "verify": True} if mutual else {}
        servers.append(OwnServer(tmp_path, f"tls: {json.dumps(conf | users)}\n{extra}"))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home whose server is stopped at the end."""
    yield tmp_path
    embedded.stop(tmp_path)


def at(server: OwnServer, home: Path, **more: object) -> Settings:
    """Settings of who believes the home's CA."""
    ca = tls_folder(home) / "ca.pem"
    url = server.url.replace("nats:", "tls:")
    return Settings.load({}, **({"home": home, "nats_url": url, "nats_tls_ca": ca} | more))


def client_of(home: Path, name: str = "ann") -> dict[str, Path]:
    with CertificateAuthority.open(home) as authority:
        made = authority.for_client(name)
    return {"nats_tls_cert": made.cert, "nats_tls_key": made.key}


async def works(settings: Settings) -> bool:
    wiring = await Wiring.open(settings, AgentIdentity(id="test"), create=True)
    key = wiring.ports.subjects.lite("test", "one")
    await wiring.ports.lite.append(key, b"stored")
    entry = await wiring.ports.lite.last(key)
    await wiring.aclose()
    return entry is not None and entry.data == b"stored"


async def refused(settings: Settings) -> TlsError:
    with pytest.raises(TlsError) as told:
        await connect(settings, name="test")
    assert told.value.hint
    assert told.value.field in {each.name for each in dataclasses.fields(Settings)}
    return told.value


@contextlib.asynccontextmanager
async def listener(port: int, change: Callable[[bytes], bytes] = bytes) -> AsyncIterator[tuple[int, bytearray]]:
    """Somebody on the way to a server, with all that clients send; `change`s what the server sends."""
    heard = bytearray()

    async def pass_on(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, look: Callable[[bytes], bytes]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(look(data))
        writer.close()

    def keep(data: bytes) -> bytes:
        heard.extend(data)
        return data

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pass_on(reader, back, keep), pass_on(there, writer, change))

    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], heard
        server.close()


# --- the embedded server -----------------------------------------------------------------------------


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mutual"])
async def test_the_embedded_server_has_tls_and_its_files_are_for_their_owner_alone(
    home: Path, mutual: bool
) -> None:
    secure_embedded(home, mutual=mutual)
    settings = Settings(home=home)
    await Servers(settings).start_nats()
    assert await works(settings)
    endpoint = embedded.find(home)
    assert endpoint is not None
    # Who only looks whether it runs is no error of its log.
    assert "handshake error" not in (home / "nats" / "server.log").read_text()
    assert endpoint.url.startswith("tls://")
    files = [path for path in tls_folder(home).iterdir() if path.suffix in (".pem", ".key")]
    assert {path.name for path in files} >= {"ca.pem", "ca.key", "embedded.pem", "embedded.key"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert tls_folder(home).stat().st_mode & 0o777 == 0o700
    url = endpoint.url.replace("//", f"//{endpoint.token}@")
    by_url = Settings(home=home, nats_url=url, nats_tls_ca=tls_folder(home) / "ca.pem")
    if mutual:
        assert (await refused(by_url)).reason == "no_certificate"
    else:
        assert await works(by_url)
    assert (await refused(dataclasses.replace(by_url, nats_tls_ca=None))).reason == "unknown_ca"


async def test_certificates_of_the_embedded_server_that_end_soon_are_made_anew_while_it_runs(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = certificates._now
    with monkeypatch.context() as then:
        then.setattr(certificates, "_now", lambda: now() - timedelta(days=certificates.DAYS - 20))
        secure_embedded(home, mutual=True)
    server, _ = embedded_tls(home)
    assert server.cert is not None
    before = ends_at(server.cert)
    settings = Settings(home=home)
    await asyncio.to_thread(embedded.ensure, home)
    found = {each.name: each for each in examine(await gather(settings, watch_s=0.0))}["tls"]
    assert found.level == "warn"
    assert "certificate ends in" in found.found
    await Servers(settings).start_nats()
    assert ends_at(server.cert) > before + 86400 * 300
    assert await works(settings)
    shown = await connect(settings, name="test")
    until_then = datetime.strptime(shown.client.peer_certificate["notAfter"], "%b %d %H:%M:%S %Y %Z")
    assert until_then.replace(tzinfo=UTC).timestamp() == ends_at(server.cert)
    await shown.aclose()
    assert not renew_embedded(home)


def test_up_chooses_tls_and_says_what_runs_in_another_way(home: Path) -> None:
    def up(*options: str) -> str:
        ended = CliRunner().invoke(app, ["--home", str(home), "up", *options], env={"NATS_URL": ""})
        assert ended.exit_code != 0
        return ended.output

    embedded.ensure(home)
    for options in (["--tls"], ["--mutual-tls"]):
        assert "runs without TLS" in up(*options)
    embedded.stop(home)
    secure_embedded(home, mutual=True)
    embedded.ensure(home)
    assert "runs with mutual TLS" in up("--no-tls")
    other = CliRunner().invoke(app, ["--home", str(home), "up", "--tls"], env={"NATS_URL": "nats://127.0.0.1:1"})
    assert "squadron auth tls" in other.output


# --- a server of the user's own ----------------------------------------------------------------------


def test_what_auth_tls_prints_makes_a_server_with_mutual_tls_and_its_clients(tmp_path: Path) -> None:
    arguments = ["--home", str(tmp_path), "auth", "tls", "localhost", "127.0.0.1", "--client", "ann", "--json"]
    made = json.loads(CliRunner().invoke(app, arguments).stdout)
    server = OwnServer(tmp_path, made["server"]["conf"])
    server.start()
    try:
        environ = made["clients"][0]["environ"]
        for url in (server.url, server.url.replace("nats:", "tls:"), server.url.replace("127.0.0.1", "localhost")):
            assert asyncio.run(works(Settings.load({"NATS_URL": url, **environ}, home=tmp_path)))
        without = Settings.load({"NATS_URL": server.url, "NATS_CA": environ["NATS_CA"]}, home=tmp_path)
        assert asyncio.run(refused(without)).reason == "no_certificate"
    finally:
        server.stop()
    assert {path.stat().st_mode & 0o777 for path in tls_folder(tmp_path).glob("*.key")} == {0o600}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "for whom?"),
        (["no host"], "is no name of a host"),
        (["h:4222"], "is no name of a host"),
        (["--client", "server"], "can't be used as a name"),
        (["--client", "../x"], "can't be used as a name"),
        (["h", "--days", "0"], "--days: 0 can't be used"),
        (["h", "--days", "99999"], "--days: 99999 can't be used"),
    ],
)
def test_auth_tls_refuses_what_makes_no_certificate(tmp_path: Path, arguments: list[str], said: str) -> None:
    ended = CliRunner().invoke(app, ["--home", str(tmp_path), "auth", "tls", *arguments])
    assert ended.exit_code != 0
    assert said in ended.output
    assert "Traceback" not in ended.output


def test_a_ca_that_is_damaged_is_told(tmp_path: Path) -> None:
    with CertificateAuthority.open(tmp_path) as authority:
        authority.path.with_suffix(".key").write_text("rubbish")
    with pytest.raises(ConfigError, match="the CA in"), CertificateAuthority.open(tmp_path):
        pass


async def test_who_listens_on_the_way_gets_nothing_of_it(own: Own, tmp_path: Path) -> None:
    server = own("127.0.0.1", extra="authorization { user: eve, password: hushhush }\n")
    async with listener(int(server.url.rpartition(":")[2])) as (port, heard):
        settings = at(
            server, tmp_path, nats_url=f"tls://127.0.0.1:{port}", nats_user="eve", nats_password="hushhush"
        )
        assert await works(settings)
    assert heard
    assert b"hushhush" not in heard
    assert b"stored" not in heard
    assert b"CONNECT" not in heard


async def test_nothing_is_sent_to_a_server_that_says_nothing_of_tls(own: Own, tmp_path: Path) -> None:
    """As somebody on the way makes it look, who then would get the password."""
    server = own("127.0.0.1", extra="authorization { user: eve, password: hushhush }\n")

    def strip(data: bytes) -> bytes:
        return data.replace(b'"tls_required":true,', b"").replace(b'"tls_verify":true,', b"")

    async with listener(int(server.url.rpartition(":")[2]), strip) as (port, heard):
        login = {"nats_user": "eve", "nats_password": "hushhush"}
        by_scheme = at(server, tmp_path, nats_url=f"tls://127.0.0.1:{port}", nats_tls_ca=None, **login)
        by_ca = at(server, tmp_path, nats_url=f"nats://127.0.0.1:{port}", **login)
        for settings in (by_scheme, by_ca):
            assert (await refused(settings)).reason == "plain"
    assert not heard


async def test_each_thing_that_is_wrong_with_tls_has_a_reason_of_its_own(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = own("127.0.0.1")
    now = certificates._now

    async def changed(hosts: tuple[str, ...], ago: timedelta) -> TlsError:
        with monkeypatch.context() as then, CertificateAuthority.open(tmp_path) as authority:
            then.setattr(certificates, "_now", lambda: now() - ago)
            authority.for_server(hosts)
        await asyncio.to_thread(server.reload)
        return await refused(at(server, tmp_path))

    assert await works(at(server, tmp_path))
    assert (await changed(("elsewhere.example",), timedelta())).reason == "wrong_name"
    assert (await changed(("127.0.0.1",), timedelta(days=400))).reason == "expired"
    assert (await changed(("127.0.0.1",), timedelta(days=-2))).reason == "not_yet_valid"
    with CertificateAuthority.open(tmp_path / "other") as other:
        stranger = await refused(at(server, tmp_path, nats_tls_ca=other.path))
    assert (stranger.reason, stranger.field) == ("unknown_ca", "nats_tls_ca")
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("rubbish")
    assert (await refused(at(server, tmp_path, nats_tls_ca=rubbish))).reason == "files"
    found = {each.name: each for each in examine(await gather(at(server, tmp_path), watch_s=0.0))}
    assert "not valid yet" in found["nats answers"].found


async def test_a_certificate_of_ours_that_the_server_does_not_take_is_told(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = own("127.0.0.1", mutual=True)
    assert await works(at(server, tmp_path, **client_of(tmp_path)))
    assert (await refused(at(server, tmp_path))).reason == "no_certificate"
    stranger = await refused(at(server, tmp_path, **client_of(tmp_path / "other")))
    assert (stranger.reason, stranger.field) == ("refused", "nats_tls_cert")
    now = certificates._now
    with monkeypatch.context() as then:
        then.setattr(certificates, "_now", lambda: now() - timedelta(days=400))
        old = client_of(tmp_path, "old")
    assert (await refused(at(server, tmp_path, **old))).reason == "refused"
    mixed = {**client_of(tmp_path, "bob"), "nats_tls_key": old["nats_tls_key"]}
    assert (await refused(at(server, tmp_path, **mixed))).reason == "files"


async def test_a_server_without_tls_is_told_as_such(tmp_path: Path) -> None:
    server = OwnServer(tmp_path)
    server.start()
    try:
        assert (await refused(at(server, tmp_path, nats_tls_ca=None))).reason == "plain"
    finally:
        server.stop()


async def test_files_that_were_changed_are_those_of_the_next_connection(own: Own, tmp_path: Path) -> None:
    server = own("127.0.0.1", mutual=True)
    settings = at(server, tmp_path, **client_of(tmp_path))
    connection = await connect(settings, name="test")
    # Another CA for everything, as after a loss of the key.
    for path in tls_folder(tmp_path).glob("ca.*"):
        path.unlink()
    client_of(tmp_path)
    with CertificateAuthority.open(tmp_path) as authority:
        authority.for_server(["127.0.0.1"])
    await asyncio.to_thread(server.reload)
    await connection.client.reconnect()

    async def back() -> bool:
        return connection.is_connected

    await until(back)
    await connection.aclose()


# --- the doctor --------------------------------------------------------------------------------------


def outward_address() -> str:
    """An address of this machine that is not loopback."""
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family.name == "AF_INET" and not each.address.startswith("127."):
                return str(each.address)
    pytest.skip("this machine has no address but loopback")


async def test_the_doctor_tells_of_a_wire_that_others_can_read(own: Own, tmp_path: Path) -> None:
    address = outward_address()
    server = OwnServer(tmp_path)
    server.start()
    try:
        port = int(server.url.rpartition(":")[2])

        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(_pump(reader, back), _pump(there, writer))

        async with await asyncio.start_server(pass_on, address, 0) as outward:
            url = f"nats://{address}:{outward.sockets[0].getsockname()[1]}"
            facts = await gather(Settings.load({}, home=tmp_path, nats_url=url), watch_s=0.0)
            found = {each.name: each for each in examine(facts)}["tls"]
            outward.close()
    finally:
        server.stop()
    assert found.level == "warn"
    assert "can be read" in found.found
    assert "squadron auth tls" in found.fix


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()


async def test_the_doctor_tells_until_when_certificates_are_good(own: Own, tmp_path: Path) -> None:
    server = own("127.0.0.1", mutual=True)
    settings = at(server, tmp_path, **client_of(tmp_path))
    facts = await gather(settings, watch_s=0.0)
    found = {each.name: each for each in examine(facts)}["tls"]
    assert found.level == "ok"
    assert "good until" in found.found
    late = dataclasses.replace(facts, now=time.time() + 380 * 86400)
    told = [each for each in examine(late) if each.name == "tls"]
    assert [each.level for each in told] == ["warn", "warn"]
    gone = dataclasses.replace(facts, now=time.time() + 400 * 86400)
    assert {each.level for each in examine(gone) if each.name == "tls"} == {"fail"}
