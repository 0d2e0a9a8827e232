"""Texts that match a regular expression: always the same, the shortest first."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

#: The parser of `re`; it has no public name, and a second one would read patterns otherwise.
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

#: Letters to choose from where any will do.
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789_- .ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CATEGORIES = {"CATEGORY_DIGIT": r"\d", "CATEGORY_SPACE": r"\s", "CATEGORY_WORD": r"\w"}
_CATEGORIES |= {"CATEGORY_NOT_DIGIT": r"\D", "CATEGORY_NOT_SPACE": r"\S", "CATEGORY_NOT_WORD": r"\W"}
#: Candidates that are tried, and repetitions beyond the fewest.
_TRIES, _MORE = 512, 3


def matching(pattern: str, least: int = 0) -> Iterator[str]:
    """Some texts, at least `least` characters long, in which `re.search` finds the pattern.

    Lookarounds are tried and not solved. What may be repeated is, until it is long enough.
    """
    try:
        found, parsed = re.compile(pattern), parser.parse(pattern)
    except re.error:
        return
    texts = (text for more in (0, 1, least) for text in _texts(list(parsed), more))
    seen: set[str] = set()
    for text in itertools.islice(texts, _TRIES):
        # Without an end the pattern says nothing of what stands behind it.
        for long in dict.fromkeys((text, text.ljust(least, "a"))):
            if len(long) >= least and long not in seen and found.search(long):
                seen.add(long)
                yield long


def _texts(parts: list[Any], more: int) -> Iterator[str]:
    if not parts:
        yield ""
        return
    code, about = parts[0]
    for head in _of_part(code, about, more):
        for rest in itertools.islice(_texts(parts[1:], more), _MORE):
            yield head + rest


def _of_part(code: Any, about: Any, more: int) -> Iterator[str]:
    match str(code):
        case "LITERAL":
            yield chr(about)
        case "NOT_LITERAL":
            yield from (letter for letter in _LETTERS if ord(letter) != about)
        case "ANY":
            yield from _LETTERS
        case "IN":
            yield from (letter for letter in (*_LETTERS, *_named(about)) if _is_in(letter, about))
        case "BRANCH":
            for branch in about[1]:
                yield from itertools.islice(_texts(list(branch), more), _TRIES)
        case "SUBPATTERN":
            yield from _texts(list(about[-1]), more)
        case "ATOMIC_GROUP":
            yield from _texts(list(about), more)
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            fewest, most, repeated = about
            for count in range(min(fewest + more, int(most)), min(fewest + more + _MORE, int(most)) + 1):
                for one in itertools.islice(_texts(list(repeated), 0), len(_LETTERS)):
                    yield one * count
        case _:
            # Places and lookarounds take no text; whether they hold is looked at in the end.
            yield ""


def _named(about: Any) -> Iterator[str]:
    """Characters that a set names itself."""
    for code, what in about:
        if str(code) == "LITERAL":
            yield chr(what)
        elif str(code) == "RANGE":
            yield chr(what[0])


def _is_in(letter: str, about: Any) -> bool:
    negated = bool(about) and str(about[0][0]) == "NEGATE"
    found = False
    for code, what in about:
        match str(code):
            case "LITERAL":
                found |= ord(letter) == what
            case "RANGE":
                found |= what[0] <= ord(letter) <= what[1]
            case "CATEGORY":
                found |= re.fullmatch(_CATEGORIES[str(what)], letter) is not None
    return found is not negated
