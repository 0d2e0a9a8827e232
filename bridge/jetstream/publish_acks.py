"""What the server says of a message that is to be stored."""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json

from squadron.bridge.jetstream.link.lasting_client import Heard
from squadron.runtime.errors import BusUnavailableError, FencedError, StorageFullError

#: JetStream error codes (nats-server `errors.json`).
_WRONG_LAST_SEQUENCE = (10071, 10164)
#: A rollup of a kind that the server does not know, or that the stream does not take.
NO_ROLLUP = 10111
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
    return int(_ack(answer, subject)["seq"])


def read_new(answer: Heard, subject: str) -> int:
    """As `read_ack`, but 0 if nothing was stored because the message's id is known."""
    ack = _ack(answer, subject)
    return 0 if ack.get("duplicate") else int(ack["seq"])


def _ack(answer: Heard, subject: str) -> dict[str, Any]:
    ack: dict[str, Any] = from_json(answer.data, cache_strings="keys")
    error = ack.get("error")
    if error is None:
        return ack
    if error.get("err_code") in _WRONG_LAST_SEQUENCE:
        raise FencedError(f"{subject}: {error.get('description')}")
    code, description = error.get("err_code"), str(error.get("description"))
    if code in _STORAGE_FULL or (code == _NOT_STORED and any(words in description for words in _FULL_WORDS)):
        raise StorageFullError(
            f"{subject} can't be stored: {description}",
            hint="JetStream is full: give it more storage, or drop dead letters and lite topics",
        )
    raise BusUnavailableError(f"{subject}: {error.get('description')}")


def read_refusal(answer: Heard, _: str) -> int:
    """The server's code for why it did not store a message; 0 if it did."""
    return int(from_json(answer.data, cache_strings="keys").get("error", {}).get("err_code", 0))
