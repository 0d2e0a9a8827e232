"""Ids of tasks that say by themselves what else would have to be noted of them: until when they may take."""

from __future__ import annotations

import hashlib
import hmac
import secrets

#: In hex digits: a deadline in ms since the epoch (up to the year 2527), what is made up (48 bits), and the code
#: by a key (56 bits). With an owner's name all of it is a subject token. To try a code one has to ask for it.
_DEADLINE, _NONCE, _CODE = 11, 12, 14
#: Makes them unlike the ids that say nothing.
_MARK = "t"


class TellingIds:
    """Makes and reads them; a code by the key says that such a task was sent, and on which topic.

    Args:
        key: of 16 to 64 bytes, which all processes that are to read them have.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def make(self, owner: str, topic: str, deadline_ms: int) -> str:
        """A fresh id of a task of this owner's."""
        said = f"{owner}-{_MARK}{deadline_ms:0{_DEADLINE}x}{secrets.token_hex(_NONCE // 2)}"
        return said + self._code(said, topic)

    def deadline_of(self, id: str, topic: str) -> int | None:
        """Until when a task may take, in ms since the epoch; None if the id is none of these, on this topic."""
        said, code = id[:-_CODE], id[-_CODE:]
        rest = said.partition("-")[2]
        if len(rest) != 1 + _DEADLINE + _NONCE or not rest.startswith(_MARK):
            return None
        if not hmac.compare_digest(code.encode("utf-8", "replace"), self._code(said, topic).encode()):
            return None
        return int(rest[1 : 1 + _DEADLINE], 16)

    def _code(self, said: str, topic: str) -> str:
        # Keyed by itself, and a tenth of what HMAC costs: each prompt has one.
        text = f"{said} {topic}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, key=self._key, digest_size=_CODE // 2).hexdigest()
