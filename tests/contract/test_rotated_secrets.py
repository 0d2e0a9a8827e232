"""A secret that is changed where it is kept is used from then on: by the next connection, and by the next call."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from squadron import Settings
from squadron.actors.thinking.model import ModelRequest
from squadron.bridge.jetstream.link.connect import Connection
from squadron.bridge.jetstream.link.dial import connect
from squadron.runtime.errors import ModelError, SquadronError
from tests.contract.own_server import OwnServer
from tests.llm_playing import BACKGROUND, PROVIDERS, TURN, USER, Provider, said

OLD, NEW = (f"planted-{which}-{secrets.token_hex(8)}" for which in ("old", "new"))


class Account:
    """A server with one user, whose password is in a file, too."""

    def __init__(self, folder: Path) -> None:
        self.file, self.server = folder / "kept", OwnServer(folder, jetstream="off")

    def rotate(self, password: str, *, kept: str) -> None:
        """The server knows another password from now on, and `kept` is in the file."""
        self.server.stop()
        self.file.write_text(f"{kept}\n")
        self.server._extra = f'authorization {{ users: [{{ user: eve, password: "{password}" }}] }}'
        self.server.start()


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    made = Account(tmp_path)
    made.rotate(OLD, kept=OLD)
    yield made
    made.server.stop()


async def _answers(connection: Connection) -> None:
    """Return when a message comes through, there and back."""
    heard = asyncio.Event()
    subscription = await connection.listen("rotated.test", lambda _: heard.set())
    while not heard.is_set():
        try:
            await connection.publish("rotated.test", b"")
            await connection.flush()
        except SquadronError:
            await asyncio.sleep(0.05)
    await subscription.unsubscribe()


async def test_a_password_that_was_changed_is_used_by_the_next_connection(
    account: Account, tmp_path: Path
) -> None:
    place = f"file:{account.file}"
    settings = Settings(home=tmp_path, nats_url=account.server.url, nats_user="eve", nats_password=place)
    connection = await connect(settings, name="test")
    try:
        await _answers(connection)
        account.rotate(NEW, kept=NEW)
        await _answers(connection)
        # A file that is gone ends nothing: what was read last may still be right.
        account.file.unlink()
        account.server.stop()
        account.server.start()
        await _answers(connection)
    finally:
        await connection.aclose()


async def test_so_is_one_in_an_address_that_is_kept(account: Account, tmp_path: Path) -> None:
    def address(password: str) -> str:
        return account.server.url.replace("://", f"://eve:{password}@")

    account.file.write_text(address(OLD))
    connection = await connect(Settings(home=tmp_path, nats_url=f"file:{account.file}"), name="test")
    try:
        await _answers(connection)
        account.rotate(NEW, kept=address(NEW))
        await _answers(connection)
    finally:
        await connection.aclose()


@pytest.mark.parametrize("provider", [*PROVIDERS, BACKGROUND], ids=lambda each: each.name)
@pytest.mark.parametrize("by", ["variable", "argument"])
async def test_a_key_that_was_changed_is_used_by_the_next_call(
    provider: Provider, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a model that is open for long, as that of a run."""
    monkeypatch.delenv("SQUADRON_HOME", raising=False)
    file = tmp_path / "kept"
    file.write_text(OLD)
    monkeypatch.setenv(f"{provider.prefix}_API_KEY", f"file:{file}" if by == "variable" else "sk-another")
    given: dict[str, Any] = {"api_key": f"file:{file}"} if by == "argument" else {}
    with provider.server([TURN, TURN], api_key=OLD) as server:
        model = provider.model("m", base_url=server.base_url, **given)
        request = ModelRequest(tuple(USER))
        assert said(await model.think(request)) == TURN
        server.api_key = NEW
        with pytest.raises(ModelError, match="401") as caught:
            await model.think(request)
        assert OLD not in f"{caught.value!r}{caught.value.to_dict()}"
        file.write_text(NEW)
        assert said(await model.think(request)) == TURN
        file.unlink()
        with pytest.raises(ModelError, match=r"no key for .*file:.* can't be read") as gone:
            await model.think(request)
        assert not gone.value.retryable
        await model.aclose()
