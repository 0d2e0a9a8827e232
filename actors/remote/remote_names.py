"""What the agents are called that stand for servers elsewhere."""

from __future__ import annotations

from squadron.runtime.errors import InvalidInputError, InvalidSubjectError
from squadron.runtime.wire.subjects import check_token


def agent_named(prefix: str, name: str) -> str:
    """The agent of a server that is called `name` here; `prefix` is its protocol's.

    Raises:
        InvalidInputError: it can't be one.
    """
    try:
        return check_token(f"{prefix}{name}" if name else name, "name")
    except InvalidSubjectError:
        hint = f"1 to {64 - len(prefix)} letters, digits, '_' or '-'"
        raise InvalidInputError(f"{name[:80]!r} can't be the name of a server", field="name", hint=hint) from None
