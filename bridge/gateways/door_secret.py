"""The secret of a gateway: what its processes seal and derive by it, all of them can open and find again."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from squadron.bridge.daemons import locked, private_dir, write_private
from squadron.runtime.errors import ConfigError
from squadron.runtime.secret import Secret

#: Folder in the home with what gateways keep there.
FOLDER = "gateways"
#: Of the file that is made, and the least that is taken, in bytes.
SECRET_BYTES = 32
#: Somebody else makes the file in a moment, in seconds.
_MADE_WITHIN_S = 5.0


class DoorSecret:
    """Keys for different uses, derived from one secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @classmethod
    def of(cls, home: Path, given: Secret) -> DoorSecret:
        """The secret that was given, which processes on several machines share; else that of the home, made once.

        Raises:
            ConfigError: the given one can't be had, or is short; or the home can't be written.
        """
        if given:
            value = given.value().encode()
            if len(value) < SECRET_BYTES:
                hint = "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
                raise ConfigError(f"the secret of the gateway has fewer than {SECRET_BYTES} bytes", hint=hint)
            return cls(value)
        folder = private_dir(home / FOLDER)
        path = folder / "secret"
        with locked(folder / ".lock", within_s=_MADE_WITHIN_S, error=ConfigError):
            if not path.is_file():
                write_private(path, secrets.token_hex(SECRET_BYTES))
            return cls(path.read_text().encode())

    def key(self, use: str) -> bytes:
        """A key of 32 bytes for one use."""
        return hmac.digest(self._secret, use.encode(), hashlib.sha256)

    def name_for(self, use: str, what: str) -> str:
        """24 hex digits that stand for `what`, and that nobody without the secret can make (96 bits)."""
        return hmac.digest(self.key(use), what.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()[:24]
