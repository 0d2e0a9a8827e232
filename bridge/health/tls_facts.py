"""How the server is reached: what a listener on the way would get, and until when certificates are good."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl

from squadron.bridge.health.facts import WireFacts
from squadron.bridge.jetstream.link.at_home import tls_files
from squadron.bridge.jetstream.link.lasting_client import LastingClient
from squadron.config import Settings


async def wire_of(client: LastingClient, settings: Settings) -> WireFacts:
    """What is known of a connection."""
    shown, own = client.peer_certificate, tls_files(settings).cert
    ends_at = float(ssl.cert_time_to_seconds(shown["notAfter"])) if shown else 0.0
    own_ends_at = 0.0
    if own is not None:
        from squadron.bridge.auth.certificates import ends_at as read

        own_ends_at = await asyncio.to_thread(read, own)
    return WireFacts(bool(shown), ipaddress.ip_address(client.peer).is_loopback, ends_at, own_ends_at)
