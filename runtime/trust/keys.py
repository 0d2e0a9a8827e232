"""Keys as NATS has them (nkeys): Ed25519, in base32 behind a letter for what the key is of.

PyNaCl is loaded by the first of them: who has no credentials has no key.
"""

from __future__ import annotations

import base64
import binascii
import os
from functools import cache, lru_cache
from typing import Any, Literal

from squadron.runtime.errors import ConfigError

#: An operator, an account (or one of its signing keys), a user.
KeyKind = Literal["O", "A", "U"]

#: Their first byte (NATS ADR-14): the letter in base32.
_PREFIX: dict[KeyKind, int] = {"O": 14 << 3, "A": 0, "U": 20 << 3}
#: Bytes of a signature.
_SIGNATURE_BYTES = 64


@cache
def _nacl() -> Any:
    import nacl.bindings
    import nacl.exceptions

    return nacl


class Key:
    """A pair of keys. Its seed is in no `repr`, and it can't be pickled."""

    __slots__ = ("_secret", "_seed", "public")

    def __init__(self, seed: bytes) -> None:
        """Take a seed up, as `seed` tells it.

        Raises:
            ConfigError: it is none of an operator, an account or a user.
        """
        import nkeys

        try:
            prefix, raw = nkeys.decode_seed(bytearray(seed.strip()))
        except (nkeys.NkeysError, ValueError, IndexError, TypeError):
            prefix, raw = None, b""
        kind: KeyKind | None = next((each for each, of in _PREFIX.items() if of == prefix), None)
        if kind is None or len(raw) != 32:
            raise ConfigError("that is no seed of an nkey", hint="a seed begins with SO, SA or SU")
        self._seed = bytes(seed.strip())
        public, self._secret = _nacl().bindings.crypto_sign_seed_keypair(bytes(raw))
        #: The public half, like `UABC…`.
        self.public = _written(_PREFIX[kind], public)

    @classmethod
    def create(cls, kind: KeyKind) -> Key:
        """A new one."""
        import nkeys

        return cls(bytes(nkeys.encode_seed(os.urandom(32), _PREFIX[kind])))

    @property
    def seed(self) -> bytes:
        """The secret half, like `SUABC…`."""
        return self._seed

    def sign(self, data: bytes) -> bytes:
        """64 bytes that nobody else can make for this data."""
        signed: bytes = _nacl().bindings.crypto_sign(data, self._secret)
        return signed[:_SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"Key({self.public})"

    def __reduce__(self) -> str:
        raise TypeError("a key does not travel")


def _written(prefix: int, raw: bytes) -> str:
    import nkeys

    src = bytes([prefix]) + raw
    return base64.b32encode(src + nkeys.crc16(bytearray(src)).to_bytes(2, "little")).rstrip(b"=").decode()


@lru_cache(maxsize=4096)
def kind_of(public: str) -> KeyKind | None:
    """What a public key is of; None if it is no key."""
    return next((kind for kind in _PREFIX if public[:1] == kind and _verifying(public) is not None), None)


def is_signed_by(public: str, data: bytes, signature: bytes) -> bool:
    """Whether the signature was made for just this data by whoever holds the seed of `public`."""
    key = _verifying(public)
    if key is None or len(signature) != _SIGNATURE_BYTES:
        return False
    nacl = _nacl()
    try:
        nacl.bindings.crypto_sign_open(signature + data, key)
    except nacl.exceptions.BadSignatureError:
        return False
    return True


@lru_cache(maxsize=4096)
def _verifying(public: str) -> bytes | None:
    try:
        written = base64.b32decode(public + "=" * (-len(public) % 8))
    except (binascii.Error, ValueError):
        return None
    if len(written) != 35 or written[0] not in _PREFIX.values() or _written(written[0], written[1:33]) != public:
        return None
    return written[1:33]
