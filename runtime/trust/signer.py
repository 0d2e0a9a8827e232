"""Signing what leaves a process."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from json.encoder import encode_basestring_ascii as _json_text
from pathlib import Path
from typing import Self

from squadron.runtime.errors import ConfigError, UntrustedError
from squadron.runtime.trust.agent_sender import SENDER_HEADER, signed_bytes, text_of, time_text
from squadron.runtime.trust.carried import CARRIED_HEADER, digest_of_carried
from squadron.runtime.trust.jwts import Token, read
from squadron.runtime.trust.keys import Key

#: Random bytes of a nonce, by which a message that comes again is known: nobody draws 80 bits twice. 20 letters:
#: 64 is the most, and with a carrier's go the 43 of a digest.
NONCE_BYTES = 10

_BLOCK = re.compile(r"-{3,}BEGIN ([A-Z ]+)-{3,}\s*(\S+)\s*-{3,}END")


class Signer:
    """Signs as the user of a `.creds` file; `now` is the clock, in seconds since the epoch."""

    def __init__(self, token: str, key: Key, now: Callable[[], float] = time.time) -> None:
        """Make one of a user's JWT and key.

        Raises:
            ConfigError: they don't belong together.
        """
        try:
            self.says: Token = read(token)
        except UntrustedError as error:
            raise ConfigError(str(error), hint="see NATS_CREDS") from None
        if self.says.kind != "user" or self.says.subject != key.public:
            raise ConfigError("the seed is not that of the JWT's user", hint="see NATS_CREDS")
        self.token, self._key, self._now = token, key, now
        #: The principal that it signs as, its public key, and that of its account.
        self.name, self.user, self.account = self.says.name, key.public, self.says.account
        head = {"v": 1, "account": self.account, "user": self.user, "name": self.name}
        self._head = json.dumps(head, separators=(",", ":"))[:-1]

    @classmethod
    def load(cls, path: Path, now: Callable[[], float] = time.time) -> Self:
        """Read a `.creds` file, as nats-server's tools write it.

        Raises:
            ConfigError: it can't be read, or is none.
        """
        try:
            blocks = dict(_BLOCK.findall(path.read_text()))
            return cls(blocks["NATS USER JWT"], Key(blocks["USER NKEY SEED"].encode()), now)
        except (OSError, UnicodeDecodeError, KeyError):
            raise ConfigError(f"{path} holds no credentials of a user", hint="see NATS_CREDS") from None

    def sign_text(self, text: str) -> str:
        """The signature over a text that is no message, in base64url; it has to begin with what it is for."""
        return text_of(self._key.sign(text.encode()))

    def sign(self, subject: str, data: bytes, headers: dict[str, str] | None) -> dict[str, str]:
        """The headers of a message with its signature; what it carries is covered by it, too."""
        ts, nonce = time_text(self._now()), os.urandom(NONCE_BYTES).hex()
        if headers is not None and (carried := headers.get(CARRIED_HEADER)):
            nonce += digest_of_carried(carried)
        digest = hashlib.sha256(data).hexdigest()
        signature = self._key.sign(signed_bytes(self.account, self.user, subject, ts, nonce, digest))
        rest = f',"sub":{_json_text(subject)},"ts":"{ts}","nonce":"{nonce}","sig":"{text_of(signature)}"}}'
        return {**(headers or {}), SENDER_HEADER: self._head + rest}
