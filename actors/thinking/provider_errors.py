"""What went wrong at a provider, as one error: of which kind it is, and when to try again."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from squadron.runtime.errors import ModelError
from squadron.runtime.redact import scrub

#: Errors inside a stream carry a type instead of an HTTP status; these pass with time.
_PASSING = re.compile("(api|overloaded|rate_limit|server|timeout)_(error|exceeded)|vector_store_timeout")

#: How providers say that a conversation is too long: OpenAI by a code, Anthropic, vLLM and llama.cpp in words.
_OVERFLOW = re.compile(
    r"context_length_exceeded|exceed_context_size|prompt is too long|maximum context length"
    r"|exceeds? (the )?(available )?context|exceeds? .{0,40}context (window|size)|context (window|length) is",
    re.IGNORECASE,
)

#: How they say that a request is against their rules (OpenAI's `ResponseError`; Azure the second).
_REFUSALS = frozenset(
    {"invalid_prompt", "content_filter", "content_policy_violation", "bio_policy"}
    | {"misalignment_policy_violation", "image_content_policy_violation"}
)

#: No more to spend: OpenAI says it with 429, Anthropic with 400, but waiting doesn't help.
_NO_CREDIT = re.compile("insufficient_quota|billing_error|credit balance is too low", re.IGNORECASE)

_HINTS = {  # by HTTP status
    400: "the provider did not accept this request: its message says which part",
    401: "check {prefix}_API_KEY",
    402: "add credit to the account of {prefix}_API_KEY",
    403: "{prefix}_API_KEY may not use this model: check its project, region and permissions",
    404: "check the model name, and {prefix}_BASE_URL if you set it",
    413: "shorten the conversation",
    429: "the rate limit of {prefix}_API_KEY is reached: wait, or send less at once",
    500: "the provider has a problem on its side: try again later",
}


class FailedResponseError(Exception):
    """A provider says in an event of its stream that it failed; `body` is as in an error of HTTP."""

    def __init__(self, code: str | None, message: str | None) -> None:
        super().__init__(message or code or "the response failed")
        self.body = {"code": code, "message": message or "the response failed"}


def model_error(cause: Exception, who: str, address: str, *, tokens: int = 0, began: bool = False) -> ModelError:
    """What an exception of an SDK means; `who` was asked at `address`, and used `tokens` until then."""
    prefix = who.partition(":")[0].upper()
    body = getattr(cause, "body", None)
    detail = body.get("error", body) if isinstance(body, dict) else None
    detail = detail if isinstance(detail, dict) else {}
    status: int = getattr(cause, "status_code", 0)
    known: dict[str, Any] = {"tokens": tokens, "began": began}
    if not status and not detail:
        # The SDKs say "Connection error." and keep the reason (refused, DNS, TLS) in the cause.
        why = cause.__cause__ or str(cause) or type(cause).__name__
        hint = f"check the network, and {prefix}_BASE_URL if you set it, then try again"
        return ModelError(
            scrub(f"the call of {who} at {address} failed: {why}"), hint=hint, kind="passing", **known
        )
    said = str(detail.get("message") or cause or type(cause).__name__)
    kinds = {str(detail.get("code")), str(detail.get("type"))}
    answered = f"HTTP {status}" if status >= 400 else "an error"
    if status < 400:  # it came inside a stream that had begun well
        limit = not kinds.isdisjoint({"rate_limit_error", "rate_limit_exceeded"})
        status = 429 if limit else 500 if any(map(_PASSING.fullmatch, kinds)) else 400
        code = detail.get("code")
        status = code if isinstance(code, int) and 400 <= code < 600 else status  # OpenRouter tells it there
    kind, status = _kind(status, kinds, said)
    hint = _HINTS.get(status, _HINTS[500 if status >= 500 else 400]).format(prefix=prefix)
    if kind == "request" and "temperature" in said:
        hint = "this model takes no such temperature: leave it unset"
    after_s = retry_after_s(getattr(getattr(cause, "response", None), "headers", {}))
    message = scrub(f"{who} answered {answered}: {said}")
    return ModelError(message, hint=hint, kind=kind, retry_after_s=after_s, **known)


def _kind(status: int, kinds: set[str], said: str) -> tuple[str, int]:
    """The kind of an error, and the status that explains it best."""
    told = " ".join([*kinds, said])
    if status in (400, 402, 403, 429) and _NO_CREDIT.search(told):
        return "key", 402
    if status == 413 or (status in (400, 422) and _OVERFLOW.search(told)):
        return "overflow", 413
    if status in (400, 403) and not _REFUSALS.isdisjoint(kinds):
        return "refusal", 400
    if "tool_use_failed" in kinds:  # Groq holds calls to their schemas; the next one may fit
        return "passing", 500
    if status == 429:
        return "limit", 429
    if status >= 500 or status in (408, 409):
        return "passing", max(status, 500)
    return ("key" if status in (401, 402, 403) else "request"), status


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The seconds that a provider asks to wait, from `retry-after-ms` or `retry-after` (RFC 9110, 10.2.3)."""
    for name, divisor in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            told = float(headers[name]) / divisor
        except (KeyError, ValueError):
            continue
        if math.isfinite(told) and told >= 0:
            return told
    try:
        then = parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return max(0.0, (then - datetime.now(UTC)).total_seconds())
