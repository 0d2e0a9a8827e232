"""A connection to one A2A agent elsewhere: its card, looked at and checked, and the client that goes by it."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

import httpx
from a2a.client import Client, ClientConfig, ClientFactory
from a2a.client.card_resolver import parse_agent_card
from a2a.types import a2a_pb2 as pb
from a2a.utils.signing import SignatureVerificationError, create_signature_verifier
from google.protobuf.json_format import ParseError
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from squadron.actors.remote.a2a_server import A2aServer
from squadron.runtime.errors import ConfigError, ServerUnavailableError, UntrustedError
from squadron.runtime.logs import get_logger

CARD = "/.well-known/agent-card.json"
BINDINGS = ("JSONRPC", "HTTP+JSON")
#: Of signatures, as JOSE names them: none by a shared secret.
ALGORITHMS = ["EdDSA", "ES256", "ES384", "RS256"]
#: How long a connection may take, and how long nothing may come, in seconds: servers of the SDK send a sign of
#: life every 15 on a stream.
CONNECT_WITHIN_S, SILENT_S = 10.0, 60.0
#: Largest card, in bytes: one of 1,000 skills with schemas has some 2 MB.
MOST_CARD_BYTES = 4 * 1024 * 1024

# The SDK logs whole cards and bodies.
_log = get_logger("squadron.a2a")


class A2aLink:
    """One agent elsewhere.

    Args:
        server: as it was given; what it names is looked up when it is opened.
    """

    def __init__(self, server: A2aServer) -> None:
        self._server = server
        self._http: httpx.AsyncClient | None = None
        self._opening = asyncio.Lock()
        self._card: pb.AgentCard | None = None

    async def card(self, *, fresh: bool = False) -> pb.AgentCard:
        """Its card, with those of its addresses that are on its own host.

        Raises:
            ConfigError: a header can't be looked up, or nothing of the card is spoken here.
            UntrustedError: it is not signed by one of the keys that were given.
            ServerUnavailableError: it can't be had.
        """
        async with self._opening:
            if self._card is None or fresh:
                self._card = self._checked(await self._fetched())
            return self._card

    async def client(self) -> Client:
        """A client that speaks to it.

        Raises:
            ConfigError, UntrustedError, ServerUnavailableError: see `card`.
        """
        card = await self.card()
        config = ClientConfig(httpx_client=self._connected(), supported_protocol_bindings=[*BINDINGS])
        return ClientFactory(config).create(card)

    async def aclose(self) -> None:
        """Close what is open. May be called twice."""
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    def _connected(self) -> httpx.AsyncClient:
        if self._http is None:
            times = httpx.Timeout(SILENT_S, connect=CONNECT_WITHIN_S)
            # A redirect could lead to where the headers must not be told.
            self._http = httpx.AsyncClient(
                headers=self._server.headers_now(), timeout=times, follow_redirects=False, limits=httpx.Limits()
            )
        return self._http

    async def _fetched(self) -> dict[str, Any]:
        url = self._server.url
        if not urlsplit(url).path.endswith(".json"):
            url = f"{url.rstrip('/')}{CARD}"
        try:
            async with self._connected().stream("GET", url) as answer:
                answer.raise_for_status()
                body = b""
                async for part in answer.aiter_bytes():
                    body += part
                    if len(body) > MOST_CARD_BYTES:
                        raise self._unreachable(f"has a card of more than {MOST_CARD_BYTES:,} bytes")
            said = json.loads(body)
        except httpx.HTTPStatusError as error:
            raise self._unreachable(f"answered {error.response.status_code} for its card") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise self._unreachable(f"can't be reached: {type(error).__name__} {error}"[:300]) from None
        except (ValueError, RecursionError):
            raise self._unreachable("has a card that is no JSON") from None
        if not isinstance(said, dict):
            raise self._unreachable("has a card that is no object")
        return said

    def _checked(self, said: dict[str, Any]) -> pb.AgentCard:
        try:
            card = parse_agent_card(said)
        except (ParseError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise self._unreachable(f"has a card that is none of A2A 1.0: {error}"[:300]) from None
        if self._server.keys:
            self._check_signature(card)
        host = urlsplit(self._server.url).hostname
        # A card names any address, and we would send what the headers hold there.
        kept = [each for each in card.supported_interfaces if urlsplit(each.url).hostname == host]
        kept = [each for each in kept if each.protocol_binding in BINDINGS]
        if not kept:
            raise ConfigError(
                f"{card.name[:100]!r} has no address on {host} that is spoken here ({' or '.join(BINDINGS)})",
                hint="give the URL on the host where the agent itself is",
            )
        del card.supported_interfaces[:]
        card.supported_interfaces.extend(kept)
        return card

    def _check_signature(self, card: pb.AgentCard) -> None:
        keys = {str(each.get("kid", "")): each for each in self._server.keys["keys"]}

        def key_of(kid: str | None, jku: str | None) -> PyJWK:
            # `jku` is never followed: it would let the card say who vouches for it.
            return PyJWK(keys[kid or ""])

        try:
            create_signature_verifier(key_of, ALGORITHMS)(card)
        except (SignatureVerificationError, PyJWTError, LookupError, ValueError):
            raise UntrustedError(
                f"the card of {self._server.url} is not signed by a key that was given",
                hint="if it has another key now, add it again with that",
            ) from None

    def _unreachable(self, why: str) -> ServerUnavailableError:
        return ServerUnavailableError(
            f"the A2A agent {self._server.url[:200]!r} {why}", hint="open its card where the replicas are"
        )
