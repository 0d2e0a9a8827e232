"""The authority of a home, and what a real server makes of the credentials that it gives out."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from squadron import Settings
from squadron.bridge.auth.authority import Authority
from squadron.bridge.auth.minting import AgentKeys
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.link.at_home import as_user, authority_of, credentials_of
from squadron.bridge.jetstream.wiring import Wiring
from squadron.cli.app import app
from squadron.runtime.errors import BusUnavailableError, ConfigError, UntrustedError
from squadron.runtime.trust.jwts import read
from squadron.runtime.trust.keys import Key
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.servers import Servers
from tests.contract.conftest import until
from tests.contract.own_server import OwnServer


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home whose server runs once somebody starts it."""
    yield tmp_path
    embedded.stop(tmp_path)


def _auth(home: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from squadron.cli import main; main()", "--home", str(home), "auth", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stdout + result.stderr
    return result


def _json(home: Path, *words: str) -> Any:
    return json.loads(_auth(home, *words, "--json").stdout)


async def _open(home: Path, name: str, *, create: bool = False) -> Wiring:
    settings = as_user(Settings.load({}, home=home), name)
    return await Wiring.open(settings, AgentIdentity(id=name, type="test"), create=create)


async def test_who_is_added_comes_in_without_a_restart_and_who_is_revoked_is_out(
    home: Path,
) -> None:
    assert _json(home, "init")["users"] == ["bridge", "operator", "client"]
    bridge, client = await _open(home, "bridge", create=True), await _open(home, "client")
    pid = embedded.ensure(home).pid
    lost = list[str]()
    for wiring in (bridge, client):
        wiring.connection.on_disconnect(lambda: lost.append("another"))

    told = _json(home, "add", "client", "ann")
    assert told["environ"]["NATS_CREDS"] == str(credentials_of(home, "dev", "ann")) == told["credentials"]
    ann = await _open(home, "ann")
    ann.connection.on_disconnect(lambda: lost.append("ann"))
    assert _json(home, "revoke", "ann") == {"revoked": "ann", "user": told["user"], "reloaded": True}

    async def is_out() -> bool:
        return lost == ["ann"] and not ann.connection.is_connected

    await until(is_out)
    assert client.connection.is_connected
    assert bridge.connection.is_connected
    assert embedded.ensure(home).pid == pid
    assert told["user"] in json.loads(_auth(home, "export", "trust").stdout)["revoked"]
    with pytest.raises(ConfigError, match="no user 'ann'"):
        await _open(home, "ann")
    # Whoever has kept a copy of an old one is not let in by a new one of the same name.
    _auth(home, "add", "client", "ann")
    await (again := await _open(home, "ann")).aclose()
    assert again.settings.nats_inbox_prefix == "_INBOX_ann"
    for wiring in (ann, client, bridge):
        await wiring.aclose()


async def test_rights_are_those_of_the_role(home: Path) -> None:
    Authority.create(home, "dev")
    bridge, client = await _open(home, "bridge", create=True), await _open(home, "client")
    subjects = bridge.ports.subjects
    await bridge.records.append(subjects.record("blob", "x"), b"{}")
    with pytest.raises(BusUnavailableError):
        await client.records.append(subjects.record("blob", "y"), b"{}")
    await (operator := await _open(home, "operator")).records.append(subjects.record("blob", "y"), b"{}")
    for wiring in (operator, client, bridge):
        await wiring.aclose()


async def test_an_agent_hears_of_urgent_tasks_of_what_it_serves_and_of_no_others(home: Path) -> None:
    Authority.create(home, "dev")
    # As many as a credential names one by one: it still fits into what a server reads of a connection at once.
    many = [f"{'a' * 32}.{'b' * 30}-{number}" for number in range(13)]
    served = ["math.*", *many]
    told = _json(home, "add", "agent", "analyst", *(word for each in served for word in ("--serves", each)))
    assert told["serves"] == served
    bridge, analyst = await _open(home, "bridge", create=True), await _open(home, "analyst")
    client, subjects, heard = await _open(home, "client"), bridge.ports.subjects, list[str]()
    for topic in ("office.file", "*.*", *served):
        await analyst.ports.bus.subscribe(f"{subjects.task(topic)}.*", lambda note: heard.append(note.subject))
    await analyst.connection.flush()

    asked = [subjects.task(topic, 9) for topic in ("office.file", many[-1], "math.add")]
    for subject in asked:
        await client.ports.queue.put(subject, b"{}", msg_id="")

    async def hears() -> bool:
        return asked[-1] in heard

    await until(hears)
    assert heard == asked[1:]
    # A new key vouches for the same.
    _auth(home, "rotate", "agent")
    assert [each["serves"] for each in _json(home, "list") if each["name"] == "analyst"] == [served]
    for wiring in (client, analyst, bridge):
        await wiring.aclose()


async def test_a_role_gets_another_key_without_an_outage(home: Path) -> None:
    Authority.create(home, "dev")
    bridge, client = await _open(home, "bridge", create=True), await _open(home, "client")
    lost = list[str]()
    client.connection.on_disconnect(lambda: lost.append("client"))
    old = credentials_of(home, "dev", "client").read_bytes()

    assert _json(home, "rotate", "client")["renewed"] == ["client"]
    assert client.connection.is_connected
    assert not lost
    assert credentials_of(home, "dev", "client").read_bytes() != old
    assert len(json.loads(_auth(home, "export", "trust").stdout)["roles"]["client"]) == 2
    _auth(home, "rotate", "client", "--drop-old")

    async def came_back() -> bool:
        return bool(lost) and await client.records.last(client.ports.subjects.record("blob", "none")) is None

    # By the new one, which lies where the old one did.
    await until(came_back)
    copied = home / "copied.creds"
    copied.write_bytes(old)
    stolen = Settings.load({}, home=home, nats_user_credentials=copied)
    with pytest.raises((ConfigError, BusUnavailableError)):
        await Wiring.open(stolen, AgentIdentity(id="client-1"))
    for wiring in (client, bridge):
        await wiring.aclose()


async def test_who_was_let_in_for_a_while_is_out_after_it(home: Path) -> None:
    Authority.create(home, "dev")
    bridge = await _open(home, "bridge", create=True)
    told = _json(home, "add", "client", "guest", "--expires", "2s")
    guest = await _open(home, "guest")
    ends = told["expires_at"]
    assert read(_auth(home, "export", "guest").stdout.splitlines()[1]).expires_at == ends

    async def is_out() -> bool:
        return not guest.connection.is_connected and time.time() >= ends

    await until(is_out)
    assert next(each for each in _json(home, "list") if each["name"] == "guest")["expired"]
    for wiring in (guest, bridge):
        await wiring.aclose()


async def test_what_a_home_has_stored_stays_when_it_gets_an_authority(home: Path) -> None:
    before = await Wiring.open(Settings.load({}, home=home), AgentIdentity(id="before"), create=True)
    key = before.ports.subjects.record("blob", "kept")
    await before.records.append(key, b"of before")
    assert "stop it first" in _auth(home, "init", code=2).stderr
    await before.aclose()
    embedded.stop(home)
    _auth(home, "init")
    bridge = await _open(home, "bridge", create=True)
    entry = await bridge.records.last(key)
    assert entry is not None
    assert entry.data == b"of before"
    await bridge.aclose()


async def test_a_home_of_an_older_release_has_the_rights_of_this_one_once_it_is_up(home: Path) -> None:
    made = Authority.create(home, "dev")
    told = authority_of(home) / "server.conf"
    current = told.read_text()
    assert made.is_current
    told.write_text(current.replace("resolver_preload", "# resolver_preload", 1))
    assert not Authority.load(home).is_current

    await Servers(Settings.load({}, home=home)).start_nats()

    assert told.read_text() == current
    bridge = await _open(home, "bridge", create=True)
    await bridge.aclose()


async def test_a_plain_server_takes_what_is_exported(home: Path, tmp_path: Path) -> None:
    Authority.create(home, "dev")
    folder = tmp_path / "plain"
    folder.mkdir()
    server = OwnServer(folder, _auth(home, "export", "server").stdout)
    server.start()
    try:
        creds = folder / "bridge.creds"
        creds.write_text(_auth(home, "export", "bridge").stdout)
        settings = Settings.load({}, home=home, nats_url=server.url, nats_user_credentials=creds)
        bridge = await Wiring.open(settings, AgentIdentity(id="bridge"), create=True)
        await bridge.aclose()
    finally:
        server.stop()
    accounts = json.loads(_auth(home, "export", "accounts").stdout)
    operator = read(accounts.pop("operator"))
    assert {name: read(token).issuer for name, token in accounts.items()} == dict.fromkeys(
        ("SYS", "SQ", "AGENTS"), operator.subject
    )


def test_secrets_of_a_home_are_for_its_user_alone(home: Path) -> None:
    Authority.create(home, "dev")
    for path in (home / "auth").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    seeds = re.compile(r"S[OAU][A-Z2-7]{56}")
    for name in ("list", "export trust", "export server", "export accounts"):
        assert not seeds.search(_auth(home, *name.split()).stdout)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("list",), "squadron auth init"),
        (("add", "king", "ann"), "one of bridge, agent"),
        (("add", "client", "a.b"), "name"),
        (("add", "client", "ann-0a1b2c3d"), "looks like a process"),
        (("add", "client", "client"), "is there already, as client"),
        (("add", "client", "ann", "--expires", "soon"), "like 12h or 90d"),
        (("add", "client", "ann", "--serves", "math.*"), "an agent does"),
        (("add", "agent", "ann", "--serves", "everything"), "domain.specificity"),
        (("revoke", "nobody"), "nobody is called 'nobody'"),
        (("rotate", "king"), "one of bridge, agent"),
        (("export", "moon"), "one of server, trust"),
        (("init",), "an authority already"),
    ],
)
def test_what_can_not_be_done_is_told(home: Path, words: tuple[str, ...], hint: str) -> None:
    if words[0] != "list":
        Authority.create(home, "dev")
    result = CliRunner().invoke(app, ["--home", str(home), "auth", *words])
    assert result.exit_code == 2
    assert hint in " ".join(result.stderr.split())


def test_the_bridge_makes_users_for_its_agents_and_for_nobody_else(home: Path) -> None:
    authority = Authority.create(home, "dev")
    keys = AgentKeys.load(home / "auth" / "dev" / "agent-keys.json")
    user = Key.create("U").public
    said = read(keys.mint(user, "analyst", ordered=False, serves=["math.*"], groups=["analyst.sold"]))
    trust = authority.trust("dev")
    assert (said.subject, said.name, said.account) == (user, "analyst", trust["account"])
    assert said.issuer in trust["roles"]["agent"]
    assert said.tags == ("group:analyst=sold", "serves:math.*")
    many = [f"math.number-{number}" for number in range(500)]
    assert read(keys.mint(user, "analyst", ordered=False, serves=many)).tags == ("serves:*.*",)
    assert said.expires_at - said.issued_at == pytest.approx(3600, abs=2)
    ordered = read(keys.mint(user, "analyst", ordered=True))
    assert ordered.issuer in trust["roles"]["agent"]
    assert ordered.issuer != said.issuer
    with pytest.raises(UntrustedError):
        keys.mint(user, "analyst", ordered=False, groups=["clerk.sold"])
    with pytest.raises(UntrustedError):
        keys.mint(Key.create("A").public, "analyst", ordered=False)
    assert keys.agent not in repr(keys)
    assert keys.ordered not in repr(keys)
