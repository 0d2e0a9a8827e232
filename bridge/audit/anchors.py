"""Anchors: signed statements of how far the trail had come, kept where the bus's credentials don't reach."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import nacl.exceptions
from nacl.signing import SigningKey, VerifyKey

from squadron.bridge.daemons import private_dir
from squadron.runtime.errors import ConfigError

#: What is raised by a line that is no anchor, or not one of that key.
_WRONG = (ValueError, LookupError, TypeError, nacl.exceptions.CryptoError)


@dataclass(frozen=True, slots=True)
class Anchor:
    """After `count` entries the head was `head`, `at` that time (ISO 8601), by the clock of the archivist."""

    environment: str
    count: int
    head: str
    at: str

    def signed(self) -> bytes:
        """What is signed."""
        return f"squadron audit 1\n{self.environment}\n{self.count}\n{self.head}\n{self.at}".encode()


class Seal:
    """The keys of one environment's trail: one signs anchors, one commits to contents. Both come from one seed.

    The seed is a file of the home that only its user can read. Who has it can make anchors, so copies of the
    anchors belong elsewhere, too: they are in the archivist's log.
    """

    def __init__(self, home: Path, environment: str) -> None:
        """Take the keys up, or make them.

        Raises:
            ConfigError: the home can't be used, or the file of the seed is damaged.
        """
        folder = private_dir(home / "audit")
        self.environment = environment
        self.anchor_file = folder / f"{environment}.anchors.jsonl"
        seed = _seed(folder / f"{environment}.seed")
        self._signing = SigningKey(seed)
        self.commitment_key = hmac.new(seed, b"contents", hashlib.sha256).digest()
        self.public_key = self._signing.verify_key.encode().hex()

    def anchor(self, count: int, head: str) -> str:
        """Write an anchor; it is on disk when this returns. Returns its line."""
        made = Anchor(self.environment, count, head, datetime.now(UTC).isoformat(timespec="milliseconds"))
        signature = self._signing.sign(made.signed()).signature.hex()
        fields = {"environment": made.environment, "count": count, "head": head, "at": made.at}
        line = json.dumps(fields | {"key": self.public_key, "signature": signature})
        with open(os.open(self.anchor_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        return line

    def last(self) -> Anchor | None:
        """The newest anchor of this file that these keys signed, if there is one."""
        try:
            lines = self.anchor_file.read_bytes().splitlines()
        except OSError:
            return None
        for line in reversed(lines):
            with contextlib.suppress(*_WRONG):
                return _anchor_in(line, self.public_key)
        return None


def _seed(path: Path) -> bytes:
    try:
        # Whoever makes it first has made it.
        with (
            contextlib.suppress(FileExistsError),
            open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file,
        ):
            file.write(os.urandom(32))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(f"{path} can't be made: {error.strerror}", hint="set SQUADRON_HOME") from error
    seed = path.read_bytes()
    if len(seed) != 32:
        hint = "restore it; without it a new trail has to be begun"
        raise ConfigError(f"{path} is damaged: it has {len(seed)} bytes, not 32", hint=hint)
    return seed


def read_anchors(path: Path, *, public_key: str = "") -> tuple[list[Anchor], list[str]]:
    """The anchors of a file whose signatures are right, and what is wrong with the others.

    Args:
        public_key: whose signature counts, in hexadecimal; that of the first anchor if empty.

    Raises:
        ConfigError: the file can't be read.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}", hint="give --anchors the file of the home") from None
    anchors, wrong = [], []
    for number, line in enumerate(lines, 1):
        try:
            public_key = public_key or json.loads(line)["key"]
            anchors.append(_anchor_in(line, public_key))
        except _WRONG as error:
            wrong.append(f"line {number} of {path.name}: {str(error) or type(error).__name__}")
    return anchors, wrong


def _anchor_in(line: str | bytes, public_key: str) -> Anchor:
    said = json.loads(line)
    anchor = Anchor(said["environment"], int(said["count"]), said["head"], said["at"])
    VerifyKey(bytes.fromhex(public_key)).verify(anchor.signed(), bytes.fromhex(said["signature"]))
    return anchor
