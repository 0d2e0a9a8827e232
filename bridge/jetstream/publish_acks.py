"""What the server says of a message that is to be stored."""

from __future__ import annotations

from pydantic_core import from_json

from squadron.bridge.jetstream.link.lasting_client import Heard
from squadron.runtime.errors import BusUnavailableError, FencedError, StorageFullError

#: JetStream error codes (nats-server `errors.json`).
_WRONG_LAST_SEQUENCE = (10071, 10164)
#: The server's storage is full, the account's, or, with these words, the stream or the disk.
_STORAGE_FULL, _NOT_STORED = (10002, 10023, 10047), 10077
_FULL_WORDS = ("maximum bytes", "maximum messages", "no space left")


def read_ack(answer: Heard, subject: str) -> int:
    """The sequence in a publish acknowledgement.

    Raises:
        FencedError: the expected sequence did not fit.
        StorageFullError: there is no room for the message.
        BusUnavailableError: the stream refused the message otherwise.
    """
    ack = from_json(answer.data, cache_strings="keys")
    error = ack.get("error")
    if error is None:
        return int(ack["seq"])
    if error.get("err_code") in _WRONG_LAST_SEQUENCE:
        raise FencedError(f"{subject}: {error.get('description')}")
    code, description = error.get("err_code"), str(error.get("description"))
    if code in _STORAGE_FULL or (code == _NOT_STORED and any(words in description for words in _FULL_WORDS)):
        raise StorageFullError(
            f"{subject} can't be stored: {description}",
            hint="JetStream is full: give it more storage, or drop dead letters and lite topics",
        )
    raise BusUnavailableError(f"{subject}: {error.get('description')}")
