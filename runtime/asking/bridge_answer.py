"""What the bridge answers a call, or whoever answers in its place: anybody may, where nothing is checked."""

from __future__ import annotations

import json
from typing import Any

from squadron.runtime.errors import InvalidMessageError


def read_answer(data: bytes) -> dict[str, Any]:
    """An answer: an object with an object `ok`, or `error`.

    Raises:
        InvalidMessageError: it is none.
    """
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or not any(isinstance(answer.get(each), dict) for each in ("ok", "error")):
        raise InvalidMessageError(
            "what answers for the bridge is no bridge",
            field="ok",
            hint="see `squadron doctor`; `squadron up` starts one, and SQUADRON_VERIFY=require believes no other",
        )
    return answer
