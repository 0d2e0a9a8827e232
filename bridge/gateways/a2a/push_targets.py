"""Where news of tasks may be sent: a client names the URL, so that it must lead to nothing that is ours.

A name is looked up once, each address that it has must be public, and the request goes to the address that was
looked at: a name that says something else a moment later (DNS rebinding) leads nowhere. Nothing is followed that
an answer points to, and no proxy of the environment is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Collection, Mapping
from typing import Any

import httpx

from squadron.runtime.errors import SquadronError

#: Longest URL, in characters: what browsers take.
MOST_URL = 2_048
#: How long a name may take to be looked up, and a receiver to answer, in seconds (A2A 1.0: 10 to 30).
LOOK_UP_WITHIN_S, ANSWER_WITHIN_S = 5.0, 15.0

_IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
#: Addresses of IPv4 in those of IPv6, for networks that have no other (RFC 6052).
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class PushRefusedError(SquadronError):
    """News may not be sent there, or whoever is there does not take them."""


class PushLostError(SquadronError):
    """News did not arrive; they may when they are sent again."""

    retryable = True


class PushTargets:
    """Sends news to URLs of clients.

    Args:
        trusted: hosts, or hosts with a port, that may be told though they are not public, also without TLS.
    """

    def __init__(self, trusted: Collection[str] = ()) -> None:
        self._trusted = frozenset(each.lower() for each in trusted)
        # Each address is connected to anew: a connection says nothing of the name that it was looked up by.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._client = httpx.AsyncClient(
            timeout=ANSWER_WITHIN_S, limits=limits, follow_redirects=False, trust_env=False
        )

    async def aclose(self) -> None:
        """Close what is open."""
        await self._client.aclose()

    async def check(self, url: str) -> None:
        """Refuse a URL that must not be told; a name that is nowhere now may be somewhere by then.

        Raises:
            PushRefusedError: it leads to what is not public, or is no URL to send to.
        """
        target = self._read(url)
        if not self._is_trusted(target):
            with contextlib.suppress(PushLostError):
                await _public_address(target)

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Send news, once.

        Raises:
            PushRefusedError: it may not be sent there, or is not taken.
            PushLostError: it did not arrive.
        """
        target = self._read(url)
        there, extensions = target, dict[str, Any]()
        if not self._is_trusted(target):
            there = target.copy_with(host=str(await _public_address(target)))
            # The certificate is that of the name.
            extensions["sni_hostname"] = _name(target)
        named = {**headers, "Host": target.netloc.decode("ascii")}
        request = self._client.build_request("POST", there, content=body, headers=named, extensions=extensions)
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                answer = await self._client.send(request, stream=True)
                # What it says is of no interest, however long that is.
                await answer.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError) as error:
            raise PushLostError(f"{target.host}: {type(error).__name__}") from None
        if not answer.is_success:
            is_lost = answer.status_code in (408, 425, 429) or answer.status_code >= 500
            raise (PushLostError if is_lost else PushRefusedError)(f"{target.host} answered {answer.status_code}")

    def _read(self, url: str) -> httpx.URL:
        try:
            target = httpx.URL(url)
        except (httpx.InvalidURL, TypeError, ValueError):
            raise PushRefusedError("that is no URL") from None
        if len(url) > MOST_URL or not target.host or target.userinfo or target.scheme not in ("http", "https"):
            raise PushRefusedError(f"a URL of https, without a password in it, of at most {MOST_URL} characters")
        if target.scheme != "https" and not self._is_trusted(target):
            raise PushRefusedError("news are sent by https only", hint="--push-to HOST trusts one without")
        return target

    def _is_trusted(self, target: httpx.URL) -> bool:
        host = _name(target)
        port = target.port or (443 if target.scheme == "https" else 80)
        return not self._trusted.isdisjoint((host, f"{host}:{port}"))


def _name(target: httpx.URL) -> str:
    return target.raw_host.decode("ascii").lower()


async def _public_address(target: httpx.URL) -> _IPAddress:
    """One of the addresses of a host, all of which are public.

    Raises:
        PushRefusedError: one of them is not.
        PushLostError: there are none now.
    """
    loop, port = asyncio.get_running_loop(), target.port or 443
    try:
        async with asyncio.timeout(LOOK_UP_WITHIN_S):
            found = await loop.getaddrinfo(_name(target), port, type=socket.SOCK_STREAM)
        addresses = [ipaddress.ip_address(str(each[4][0]).partition("%")[0]) for each in found]
    except (OSError, UnicodeError, ValueError, TimeoutError):
        raise PushLostError(f"{target.host} has no address") from None
    if not addresses or not all(map(is_public, addresses)):
        raise PushRefusedError(f"{target.host} is not public", hint="--push-to HOST trusts one that is not")
    return addresses[0]


def is_public(address: _IPAddress) -> bool:
    """Whether anybody on the internet has this address."""
    if isinstance(address, ipaddress.IPv6Address):
        # What is reached by these is an address of IPv4.
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if any(each is not None and not is_public(each) for each in inner):
            return False
        if address.ipv4_mapped is not None or address in _NAT64:
            return True
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)
