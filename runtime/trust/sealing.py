"""What only those can read whom it is for: HPKE (RFC 9180) around a key, AES-256-GCM around the rest.

A *box* is a random content key, wrapped for each reader. It seals many pieces, each under a number of its own, and
binds each to where it stands: moved to another place, a piece does not open. `cryptography` is loaded by the first
piece that is sealed or opened, and PyNaCl by the first ring, so that who seals nothing loads nothing.
"""

from __future__ import annotations

import binascii
import contextlib
import hashlib
import itertools
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

from squadron.runtime.errors import ConfigError, InvalidMessageError, KeyLostError, UnsealedError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

#: Begins all that is bound, so that no other protocol's bytes are taken for ours, nor those of a later version.
LABEL = "squadron/1"
#: Bytes of a key of AES-256 and of X25519, of a nonce of GCM, and of its tag (NIST SP 800-38D).
KEY_BYTES, NONCE_BYTES, TAG_BYTES = 32, 12, 16
#: Bytes of a chunk of a large payload: GCM is as fast on it as on all at once, and memory stays bounded.
CHUNK_BYTES = 1 << 20
#: Random bytes at the start of the nonces of one large payload (STREAM: Hoang et al., CRYPTO 2015).
_PREFIX_BYTES = 7
#: Content keys that are kept unwrapped: each of many callers has one or two at a time.
_KEPT = 4096
#: From the usual alphabet of Base64 to that of URLs, and back; what is of the usual one alone is of neither.
_TO_URL, _FROM_URL = bytes.maketrans(b"+/", b"-_"), bytes.maketrans(b"-_+/", b"+/!!")
#: Hexadecimal digits of a key's id: 64 bits tell the keys of all principals of an environment apart.
_KID_DIGITS = 16


@dataclass(frozen=True, slots=True)
class SealKey:
    """The public half of a pair: whoever has it can seal for its owner. X25519, 32 bytes."""

    raw: bytes

    @property
    def kid(self) -> str:
        """Its id, by which a reader finds the private half: of the key itself, so that nobody can claim it."""
        return hashlib.sha256(self.raw).hexdigest()[:_KID_DIGITS]

    def __str__(self) -> str:
        return b64(self.raw)

    @classmethod
    @lru_cache(_KEPT)
    def parse(cls, text: str) -> Self:
        """Read what `str` wrote.

        Raises:
            UnsealedError: that is no public key.
        """
        raw = unb64(text)
        if len(raw) != KEY_BYTES:
            raise UnsealedError("that is no key to seal for: it has not 32 bytes", field="sealKey")
        return cls(raw)


class KeyRing:
    """The private keys of one principal, the newest first: new pieces are for that, old ones open with theirs."""

    def __init__(self, seeds: Sequence[bytes]) -> None:
        if not seeds or any(len(seed) != KEY_BYTES for seed in seeds):
            raise ConfigError("a key ring holds keys of 32 bytes, at least one", hint="have `squadron up` make it")
        from nacl.public import PrivateKey

        pairs = [(SealKey(bytes(PrivateKey(seed).public_key)), seed) for seed in seeds]
        self.public = pairs[0][0]
        self._seeds = {public.kid: seed for public, seed in pairs}
        self._opened: OrderedDict[tuple[str, bytes], AESGCM] = OrderedDict()

    @classmethod
    def create(cls) -> Self:
        """One with a new key."""
        return cls([os.urandom(KEY_BYTES)])

    def rotated(self) -> Self:
        """The same with a new key in front; the old ones go on to open what was sealed for them."""
        return type(self)([os.urandom(KEY_BYTES), *self._seeds.values()])

    @property
    def kids(self) -> list[str]:
        """The ids of its keys, newest first."""
        return [*self._seeds]

    def to_wire(self) -> dict[str, list[str]]:
        """As JSON, secrets included: for a file that only its owner reads, and for the bridge's own call."""
        return {"keys": [b64(seed) for seed in self._seeds.values()]}

    @classmethod
    def of_wire(cls, raw: Any) -> Self:
        """Read what `to_wire` wrote.

        Raises:
            ConfigError: that is no key ring.
        """
        try:
            return cls([unb64(str(each)) for each in raw["keys"]])
        except (TypeError, LookupError, InvalidMessageError):
            raise ConfigError("that is no key ring", hint='it reads {"keys": ["…", …]}') from None

    def subkey(self, purpose: str) -> bytes:
        """32 bytes that only the owner of the newest key can make."""
        newest = next(iter(self._seeds.values()))
        return hashlib.blake2b(purpose.encode("utf-8", "surrogatepass"), key=newest, digest_size=32).digest()

    def unwrap(self, wraps: Mapping[str, str], info: bytes) -> AESGCM:
        """The content key that was wrapped for one of these keys.

        Args:
            wraps: the wrapped key by the id of each reader's key.

        Raises:
            KeyLostError: it was wrapped for none of them; names the ids.
            UnsealedError: it is not what was wrapped, or not by whom it says.
        """
        kid = next((each for each in wraps if each in self._seeds), None)
        if kid is None:
            named = ", ".join(str(each)[:64] for each in itertools.islice(wraps, 4)) or "no key"
            raise KeyLostError(
                f"it is sealed for {named}, and that key is not here",
                kid=next((str(each)[:64] for each in wraps), ""),
                hint="put the key back into its key ring; what is sealed for a lost key can't be read by anybody",
            )
        known = (wraps[kid], info)
        if (aead := self._opened.get(known)) is None:
            aead = self._opened[known] = self._unwrapped(kid, unb64(wraps[kid]), info)
            if len(self._opened) > _KEPT:
                self._opened.popitem(last=False)
        return aead

    def _unwrapped(self, kid: str, wrap: bytes, info: bytes) -> AESGCM:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        private = X25519PrivateKey.from_private_bytes(self._seeds[kid])
        try:
            key = _suite().decrypt(wrap, private, info)
        except (InvalidTag, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            raise UnsealedError(f"the key that was wrapped for {kid} does not unwrap", field="payload.sealed.keys")
        return AESGCM(key)

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(self._seeds)})"

    def __reduce__(self) -> str:
        raise TypeError("a key ring does not travel")


class Box:
    """A content key that is wrapped for its readers, and seals pieces for them; never the same number twice."""

    def __init__(self, to: Iterable[SealKey], info: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        key = os.urandom(KEY_BYTES)
        self._aead, self._numbers = AESGCM(key), itertools.count()
        self.wraps = {
            each.kid: b64(_suite().encrypt(key, X25519PublicKey.from_public_bytes(each.raw), info)) for each in to
        }

    def seal(self, plain: bytes, aad: bytes) -> bytes:
        """The piece, bound to `aad`: its nonce (12 bytes, a number), and AES-256-GCM with its tag."""
        nonce = next(self._numbers).to_bytes(NONCE_BYTES, "big")
        return nonce + self._aead.encrypt(nonce, plain, aad)


def open_piece(key: AESGCM, piece: bytes, aad: bytes) -> bytes:
    """What a `Box` sealed.

    Raises:
        UnsealedError: it was changed, cut, or stands elsewhere than it was sealed for.
    """
    from cryptography.exceptions import InvalidTag

    try:
        return key.decrypt(piece[:NONCE_BYTES], piece[NONCE_BYTES:], aad)
    except (InvalidTag, ValueError):
        raise UnsealedError(
            "it does not open: it was changed, or stands elsewhere than it was sealed for", field="payload.sealed"
        ) from None


def seal_stream(plain: bytes) -> tuple[bytes, bytes]:
    """A large payload under a key of its own: that key, and the payload in chunks that can't be moved or left out.

    A chunk's nonce is seven random bytes, its number (4 bytes), and 1 if it is the last.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    key, prefix = os.urandom(KEY_BYTES), os.urandom(_PREFIX_BYTES)
    aead, view = AESGCM(key), memoryview(plain)
    starts = range(0, max(1, len(plain)), CHUNK_BYTES)
    # Into one buffer: chunks that are joined afterwards are copied once more.
    sealed = bytearray(_PREFIX_BYTES + len(plain) + len(starts) * TAG_BYTES)
    sealed[:_PREFIX_BYTES] = prefix
    at, room = _PREFIX_BYTES, memoryview(sealed)
    for number, start in enumerate(starts):
        chunk = view[start : start + CHUNK_BYTES]
        end = at + len(chunk) + TAG_BYTES
        aead.encrypt_into(_nonce(prefix, number, start == starts[-1]), chunk, None, room[at:end])
        at = end
    return key, bytes(sealed)


def open_stream(key: bytes, sealed: bytes) -> bytes:
    """What `seal_stream` sealed.

    Raises:
        UnsealedError: a chunk was changed, moved, or is missing.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        aead, prefix, view = AESGCM(key), sealed[:_PREFIX_BYTES], memoryview(sealed)
        starts = range(_PREFIX_BYTES, len(sealed), CHUNK_BYTES + TAG_BYTES)
        return b"".join(
            aead.decrypt(
                _nonce(prefix, number, start == starts[-1]), view[start : start + CHUNK_BYTES + TAG_BYTES], None
            )
            for number, start in enumerate(starts or [_PREFIX_BYTES])
        )
    except (InvalidTag, ValueError, IndexError):
        raise UnsealedError("a chunk of the payload was changed or is missing", field="payload.claim") from None


def _nonce(prefix: bytes, number: int, is_last: bool) -> bytes:
    return prefix + number.to_bytes(4, "big") + bytes([is_last])


def bound(*fields: str) -> bytes:
    """Fields as bytes that no other fields come to: each as UTF-8 behind its length in bytes (4, big-endian)."""
    # Nearly all are short and ASCII, and texts are joined in a third of the time.
    with contextlib.suppress(IndexError):
        text = _LABEL + "".join([_LENGTHS[len(field)] + field for field in fields])
        if text.isascii():
            return text.encode()
    parts = (field.encode("utf-8", "surrogatepass") for field in (LABEL, *fields))
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


#: Lengths as they stand before a field, as long as they are ASCII, and the first field.
_LENGTHS = [length.to_bytes(4, "big").decode() for length in range(128)]
_LABEL = _LENGTHS[len(LABEL)] + LABEL


@lru_cache(_KEPT)
def info_for(kind: str, source_id: str) -> bytes:
    """What the wrapped keys of a box are bound to: messages of another kind or sender can't carry them."""
    return bound(kind, source_id)


def b64(data: bytes) -> str:
    """Base64, the URL alphabet, without padding."""
    return binascii.b2a_base64(data, newline=False).translate(_TO_URL).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    """Read what `b64` wrote.

    Raises:
        UnsealedError: it is something else.
    """
    try:
        plain = text.encode("ascii").translate(_FROM_URL)
        return binascii.a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)
    except (binascii.Error, ValueError, TypeError, AttributeError):
        raise UnsealedError("that is not base64", field="payload.sealed") from None


def _suite() -> Any:
    from cryptography.hazmat.primitives import hpke

    # X25519 needs no curve of NIST's, and all three are in every library that has HPKE.
    return hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
