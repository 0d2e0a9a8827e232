"""Which addresses of NATS servers can be used."""

from __future__ import annotations

from urllib.parse import urlsplit

from squadron.runtime.errors import ConfigError
from squadron.runtime.secret import is_reference

_SCHEMES = ("nats", "tls")


def check_nats_url(urls: str) -> None:
    """Whether this is a list of servers, or the place where one is.

    Raises:
        ConfigError: it is none; does not show it, as it may hold a password.
    """
    if is_reference(urls):
        return  # looked at where it is used
    # The value itself stays out of the message: it may carry a password.
    for url in urls.split(","):
        parts = urlsplit(url.strip() if "://" in url else f"nats://{url.strip()}")
        if parts.scheme in ("ws", "wss"):
            raise ConfigError(
                "nats_url: NATS over WebSocket is not supported, it would be slow",
                hint="set NATS_URL to the server's own port, like nats://host:4222 or tls://host:4222",
            )
        try:
            usable = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ConfigError(
                "nats_url is not a NATS URL",
                hint="set NATS_URL like nats://host:4222 or tls://host:4222, several by commas; in a password "
                "write '/', '#', '?', '@' and ',' as %2F, %23, %3F, %40 and %2C, or set NATS_USER, NATS_PASSWORD",
            )
