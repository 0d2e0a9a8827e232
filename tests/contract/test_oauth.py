"""Gateways as OAuth 2.1 resource servers: the SDK's client, a real authorization server, tokens of all kinds."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from httpx2 import AsyncClient
from mcp import Client
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from pydantic import AnyUrl

from squadron import Agent, Context, topic
from squadron.actors.remote.mcp_agent import McpAgent, look_at
from squadron.actors.remote.mcp_server import McpServer
from squadron.bridge.gateways import oauth_tokens
from squadron.bridge.gateways.fronting import GatewayOptions
from squadron.bridge.gateways.http_guard import GuardRules
from squadron.bridge.gateways.http_server import HttpServer
from squadron.bridge.gateways.oauth_tokens import OAuthRules, OAuthTokens
from squadron.config import Settings
from squadron.runtime.errors import ConfigError, InvalidInputError, ServerUnavailableError
from squadron.testing import MemorySquad
from tests.authorization_server import AuthorizationServer
from tests.contract.gateway_process import opened_gateway
from tests.contract.nats_cluster import free_port


class Clerk(Agent):
    """Knows for whom it works."""

    @topic("desk.whose")
    async def whose(self, ctx: Context) -> list[str]:
        """Tell on whose behalf this is asked."""
        return list((ctx.message.metadata or {}).get("onBehalfOf", []))


@dataclass
class Resource:
    """A gateway, and the server whose tokens it takes."""

    url: str
    server: AuthorizationServer

    @property
    def mcp(self) -> str:
        """What tokens are for."""
        return f"{self.url}/mcp"


@pytest.fixture
async def server() -> AsyncIterator[AuthorizationServer]:
    import asyncio

    port = free_port()
    made = AuthorizationServer(f"http://127.0.0.1:{port}")
    async with HttpServer(made.app(), "127.0.0.1", port, asyncio.Event()):
        yield made


@pytest.fixture
async def resource(server: AuthorizationServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Resource]:
    # In `opened_gateway` the port is any: what tokens are for is said by name.
    audience = "http://127.0.0.1/mcp"
    rules = OAuthRules.of(issuer=server.issuer, audience=audience, scopes=["tools"])
    guard = GuardRules(verifier=OAuthTokens(rules), scopes=rules.scopes, metadata_url=rules.metadata_url)
    async with MemorySquad(turned=False) as squad:
        await squad.deploy(Clerk)
        async with opened_gateway(squad._place, "mcp", rules=guard, oauth=rules) as url:
            yield Resource(url, server)


async def answered(resource: Resource, token: str = "") -> httpx.Response:
    """What comes of a request with a token."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient() as client:
        body = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        return await client.post(f"{resource.url}/mcp", json=body, headers=headers)


AUDIENCE = "http://127.0.0.1/mcp"


async def test_who_has_no_token_is_told_where_to_get_one(resource: Resource) -> None:
    refused = await answered(resource)
    assert refused.status_code == 401
    told = refused.headers["www-authenticate"]
    assert told == 'Bearer resource_metadata="http://127.0.0.1/.well-known/oauth-protected-resource/mcp"'
    async with httpx.AsyncClient() as client:
        said = (await client.get(f"{resource.url}/.well-known/oauth-protected-resource/mcp")).json()
    assert said["authorization_servers"] == [resource.server.issuer]
    assert (said["resource"], said["scopes_supported"]) == (AUDIENCE, ["tools"])


async def test_a_token_for_this_gateway_counts_and_all_others_do_not(resource: Resource) -> None:
    server, now = resource.server, int(time.time())
    assert (await answered(resource, server.token(AUDIENCE))).status_code not in (401, 403)
    assert (await answered(resource, server.token(["http://else.where", AUDIENCE]))).status_code not in (401, 403)
    other = ec.generate_private_key(ec.SECP256R1())
    wrong = {
        "for another": server.token("http://else.where/mcp"),
        "for nobody": server.token(AUDIENCE, aud=None),
        "over": server.token(AUDIENCE, exp=now - 60),
        "without an end": server.token(AUDIENCE, exp=None),
        "not yet": server.token(AUDIENCE, nbf=now + 600),
        "of another issuer": server.token(AUDIENCE, iss="http://else.where"),
        "of nobody": server.token(AUDIENCE, sub=None),
        "by another key": server.token(AUDIENCE, key=other),
        "of another kind": server.token(AUDIENCE, typ="logout+jwt"),
        "by none": jwt.encode({"sub": "ann", "aud": AUDIENCE, "iss": server.issuer}, None, algorithm="none"),
        "by a shared secret": jwt.encode({"sub": "ann", "aud": AUDIENCE}, "x" * 32, headers={"kid": server.kid}),
        "no token": "abc.def.ghi",
    }
    for what, token in wrong.items():
        refused = await answered(resource, token)
        assert refused.status_code == 401, what
        assert 'error="invalid_token"' in refused.headers["www-authenticate"], what
        assert 'resource_metadata="' in refused.headers["www-authenticate"], what


async def test_a_token_that_is_good_for_too_little_is_told_what_lacks(resource: Resource) -> None:
    refused = await answered(resource, resource.server.token(AUDIENCE, scope="profile"))
    assert refused.status_code == 403
    told = refused.headers["www-authenticate"]
    assert 'error="insufficient_scope"' in told
    assert 'scope="tools"' in told


async def test_a_new_key_is_found_and_one_that_nobody_has_is_not_asked_for_again_and_again(
    resource: Resource, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = resource.server
    old = server.token(AUDIENCE)
    assert (await answered(resource, old)).status_code != 401
    asked = server.asked
    for _ in range(5):
        token = jwt.encode({"sub": "x"}, ec.generate_private_key(ec.SECP256R1()), "ES256", headers={"kid": "none"})
        assert (await answered(resource, token)).status_code == 401
    assert server.asked - asked <= 1

    monkeypatch.setattr(oauth_tokens, "AGAIN_S", 0.0)
    server.rotate()
    assert (await answered(resource, server.token(AUDIENCE))).status_code != 401
    assert (await answered(resource, old)).status_code == 401


async def test_where_no_keys_are_to_be_had_nobody_is_let_in() -> None:
    issuer = f"http://127.0.0.1:{free_port()}"
    rules = OAuthRules.of(issuer=issuer, audience=AUDIENCE)
    guard = GuardRules(verifier=OAuthTokens(rules), metadata_url=rules.metadata_url)
    async with MemorySquad(turned=False) as squad:
        await squad.deploy(Clerk)
        async with opened_gateway(squad._place, "mcp", rules=guard, oauth=rules) as url:
            absent = AuthorizationServer(issuer)
            refused = await answered(Resource(url, absent), absent.token(AUDIENCE))
    assert refused.status_code == 503


@dataclass
class Kept:
    """What a client keeps."""

    tokens: OAuthToken | None = None
    client: OAuthClientInformationFull | None = None
    sent_to: list[str] = field(default_factory=list)

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


@pytest.mark.parametrize("mode", ["2026-07-28", "legacy"])
async def test_the_client_of_the_sdk_gets_a_token_by_itself_and_calls(
    server: AuthorizationServer, mode: str
) -> None:
    port, kept, found = free_port(), Kept(), dict[str, Any]()
    options = GatewayOptions(doors=("mcp",), port=port)
    rules = options.oauth(Settings.load({}, oauth_issuer=server.issuer, oauth_scopes="tools"))
    assert rules is not None
    assert rules.audience == f"http://127.0.0.1:{port}/mcp"
    guard = GuardRules(verifier=OAuthTokens(rules), scopes=rules.scopes, metadata_url=rules.metadata_url)

    async def go(url: str) -> None:
        async with httpx.AsyncClient(follow_redirects=False) as browser:
            back = (await browser.get(url)).headers["location"]
        found.update({name: values[0] for name, values in parse_qs(urlsplit(back).query).items()})

    async def come_back() -> AuthorizationCodeResult:
        return AuthorizationCodeResult(code=found["code"], state=found["state"])

    asks = OAuthClientMetadata(client_name="tests", redirect_uris=[AnyUrl("http://127.0.0.1:1/callback")])
    auth = OAuthClientProvider(rules.audience, asks, kept, redirect_handler=go, callback_handler=come_back)
    async with MemorySquad(turned=False) as squad:
        await squad.deploy(Clerk)
        async with (
            opened_gateway(squad._place, "mcp", rules=guard, oauth=rules, port=port) as url,
            AsyncClient(auth=auth) as http,
        ):
            assert f"{url}/mcp" == rules.audience
            transport = streamable_http_client(f"{url}/mcp", http_client=http)
            async with Client(transport, mode=mode) as client:  # type: ignore[arg-type]
                done = await client.call_tool("desk__whose", {})
    assert "client:ann" in str(done.content)
    assert kept.tokens is not None


@asynccontextmanager
async def locked_server(server: AuthorizationServer) -> AsyncIterator[str]:
    """The URL of an MCP server that takes tokens of this issuer alone."""
    port = free_port()
    rules = GatewayOptions(doors=("mcp",), port=port).oauth(
        Settings.load({}, oauth_issuer=server.issuer, oauth_scopes="tools")
    )
    assert rules is not None
    guard = GuardRules(verifier=OAuthTokens(rules), scopes=rules.scopes, metadata_url=rules.metadata_url)
    async with MemorySquad(turned=False) as squad:
        await squad.deploy(Clerk)
        async with opened_gateway(squad._place, "mcp", rules=guard, oauth=rules, port=port) as url:
            yield f"{url}/mcp"


SECRET = "s3cret/of a program+"


async def test_tools_behind_oauth_are_topics_and_another_token_is_got_when_one_is_over(
    server: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROGRAM_SECRET", SECRET)
    server.programs["squad-7"] = SECRET
    oauth = {"issuer": server.issuer, "clientId": "squad-7", "clientSecret": "env:PROGRAM_SECRET"}
    async with locked_server(server) as url, MemorySquad(turned=False) as squad:
        there = McpServer.of({"url": url, "oauth": oauth})
        assert SECRET not in json.dumps(there.to_dict())
        assert McpServer.of(there.to_dict()) == there
        operations, _ = await look_at(there, "mcp_locked", squad._place.ports)
        await squad.deploy(McpAgent.serving("mcp_locked", there.to_dict(), operations))
        assert (await squad.ask("mcp_locked.desk__whose", {})).unwrap() == ["client:squad-7"]
        given = server.given
        monkeypatch.setattr(oauth_tokens, "AGAIN_S", 0.0)
        server.rotate()
        # From the first token by the new key on, those by the old one count no more there.
        await answered(Resource(url.removesuffix("/mcp"), server), server.token(url))
        assert (await squad.ask("mcp_locked.desk__whose", {}, within_s=60)).unwrap()
        assert server.given > given


async def test_a_person_who_signed_in_once_is_whose_name_calls_are_made_in(
    server: AuthorizationServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PROGRAM_SECRET", SECRET)
    server.programs["squad-7"], server.signed_in["refresh-of-ann-9f41"] = SECRET, "ann"
    place = tmp_path / "ann"
    place.write_text("refresh-of-ann-9f41")
    oauth = {"issuer": server.issuer, "clientId": "squad-7", "clientSecret": "env:PROGRAM_SECRET"}
    async with locked_server(server) as url, MemorySquad(turned=False) as squad:
        there = McpServer.of({"url": url, "oauth": {**oauth, "refreshToken": f"file:{place}"}})
        operations, _ = await look_at(there, "mcp_locked", squad._place.ports)
        await squad.deploy(McpAgent.serving("mcp_locked", there.to_dict(), operations))
        assert (await squad.ask("mcp_locked.desk__whose", {})).unwrap() == ["client:ann"]
        assert "refresh-of-ann" not in json.dumps(there.to_dict())
        place.write_text("refresh-of-nobody")
        with pytest.raises(ServerUnavailableError, match="can't be reached"):
            await look_at(there, "mcp_locked", squad._place.ports)


@pytest.mark.parametrize("wrong", ["secret", "issuer"])
async def test_a_server_that_leads_elsewhere_or_a_wrong_secret_is_said_and_no_secret_shown(
    server: AuthorizationServer, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv("PROGRAM_SECRET", SECRET if wrong == "issuer" else "another-secret-9f41")
    server.programs["squad-7"] = SECRET
    issuer = "https://else.where.example" if wrong == "issuer" else server.issuer
    oauth = {"issuer": issuer, "clientId": "squad-7", "clientSecret": "env:PROGRAM_SECRET"}
    async with locked_server(server) as url, MemorySquad(turned=False) as squad:
        with pytest.raises(ServerUnavailableError) as refused:
            await look_at(McpServer.of({"url": url, "oauth": oauth}), "mcp_locked", squad._place.ports)
    assert server.given == 0
    said = f"{refused.value} {refused.value.hint}"
    assert "can't be reached" in said
    assert SECRET not in said
    assert "another-secret" not in said


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"oauth": {"issuer": "https://a.example", "clientId": "x"}}, "oauth.clientSecret"),
        ({"oauth": {"issuer": "http://a.example", "clientId": "x", "clientSecret": "env:X"}}, "oauth"),
        (
            {"oauth": {"issuer": "https://a.example", "clientId": "x", "clientSecret": "plain-9f41"}},
            "oauth.client_secret",
        ),
        ({"headers": {"Authorization": "env:X"}}, ""),
        ({"url": "", "command": "x"}, ""),
    ],
)
def test_oauth_that_can_not_be_is_refused_where_it_is_wrong(given: dict[str, Any], field: str) -> None:
    whole = {"issuer": "https://a.example", "clientId": "x", "clientSecret": "env:X"}
    with pytest.raises(InvalidInputError) as refused:
        McpServer.of({"url": "https://a.example/mcp", "oauth": whole} | given)
    assert refused.value.field == field


def test_settings_that_can_not_be_are_refused_by_name(tmp_path: Any) -> None:
    for wrong, name in (
        ({"issuer": "http://example.org"}, "issuer"),
        ({"issuer": "example"}, "issuer"),
        ({"audience": "here"}, "audience"),
        ({"jwks_url": "ftp://example.org"}, "jwks_url"),
        ({"scopes": ['a"b']}, "scopes"),
    ):
        given: dict[str, Any] = {"issuer": "https://example.org", "audience": AUDIENCE, **wrong}
        with pytest.raises(InvalidInputError) as refused:
            OAuthRules.of(**given)
        assert refused.value.field == name
    settings = Settings.load({}, home=tmp_path, oauth_issuer="https://example.org")
    with pytest.raises(ConfigError, match="--token"):
        GatewayOptions(doors=("mcp",), port=1, tokens=("ann=env:X",)).check(settings)
    with pytest.raises(ConfigError, match="public-url"):
        GatewayOptions(doors=("mcp",), port=1, host="0.0.0.0").check(settings)
    GatewayOptions(doors=("mcp",), port=1, host="0.0.0.0", public_url="https://a.example").check(settings)
