"""A key ring on its way to the process that it is for: nobody in between can read it."""

from __future__ import annotations

import json
from typing import Any

from squadron.runtime.errors import UnsealedError
from squadron.runtime.trust.sealing import Box, KeyRing, SealKey, b64, bound, open_piece, unb64


def hand_ring(ring: KeyRing, owner: str, to: SealKey) -> dict[str, Any]:
    """A ring as it can travel to who has made `to` for this.

    Args:
        owner: whose ring it is.
    """
    box = Box([to], bound("ring", owner))
    piece = box.seal(json.dumps(ring.to_wire()).encode(), bound("ring", owner))
    return {"keys": box.wraps, "data": b64(piece)}


def take_ring(handed: dict[str, Any], owner: str, by: KeyRing) -> KeyRing:
    """The ring that was handed to the key of `by`.

    Raises:
        UnsealedError: it is none, or another's.
    """
    try:
        key = by.unwrap(handed["keys"], bound("ring", owner))
        return KeyRing.of_wire(json.loads(open_piece(key, unb64(handed["data"]), bound("ring", owner))))
    except (TypeError, LookupError, ValueError, AttributeError):
        raise UnsealedError(f"what was handed over is no ring of {owner}") from None
