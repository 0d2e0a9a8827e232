"""Access tokens for an MCP server behind OAuth 2.1, for a program, or for a person who signed in once.

The SDK finds out from the server where tokens are to be had. They are only asked for at the issuer that was named,
so that no server gets hold of the secret; they are in the memory of the process that speaks to the server, and
another one is asked for when one is over.
"""

from __future__ import annotations

from urllib.parse import parse_qsl

import httpx2
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken

from squadron.actors.remote.mcp_server import OAuthClient


class _InMemory:
    """Keeps a token as long as the process lives."""

    def __init__(self) -> None:
        self._tokens: OAuthToken | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self._tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self._tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return None

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """Nothing to keep: these credentials were given, and not registered."""


class _AsPerson(ClientCredentialsOAuthProvider):
    """Gets tokens by the refresh token that a person's sign-in came to, where the other asks in its own name."""

    refresh_token = ""

    async def _perform_authorization(self) -> httpx2.Request:
        # It has been seen to that the server leads to the issuer that was named.
        asked = await super()._perform_authorization()
        form = dict(parse_qsl(asked.content.decode()))
        form |= {"grant_type": "refresh_token", "refresh_token": self.refresh_token}
        headers = {name: asked.headers[name] for name in ("authorization", "content-type")}
        return httpx2.Request("POST", asked.url, data=form, headers=headers)


def authorizing(url: str, given: OAuthClient) -> ClientCredentialsOAuthProvider:
    """What adds a token to each request to a server.

    Args:
        given: with the secret itself, as `McpServer.looked_up` has it.
    """
    kind = _AsPerson if given.refresh_token else ClientCredentialsOAuthProvider
    made = kind(
        url, _InMemory(), given.client_id, given.client_secret, scope=given.scope or None, issuer=given.issuer
    )
    if isinstance(made, _AsPerson):
        made.refresh_token = given.refresh_token
    return made
