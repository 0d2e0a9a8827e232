"""What never gets into the trail: secrets and personal data are struck out before anything is stored."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from squadron.runtime.errors import ConfigError
from squadron.runtime.redact import STRUCK, at_word, scrub, secrets_of_process

#: Fields whose values are secrets, or tell who somebody is, whatever stands around them in the name.
KEYS = (
    "password|passwd|passphrase|secret|token|api[-_ ]?key|private[-_ ]?key|access[-_ ]?key|authorization|cookie"
    "|credential|ssn|social[-_ ]?security|iban|credit[-_ ]?card|card[-_ ]?number|cvv|cvc|date[-_ ]?of[-_ ]?birth"
    "|birth[-_ ]?date|phone|e[-_]?mail"
)
#: Counts and limits that have such a word in their name.
_NOT_KEYS = re.compile(
    r"^(?:max[-_ ]?)?(?:input|output|total|cache[-_ ]?read|cache[-_ ]?write|reasoning|prompt)?[-_ ]?tokens$",
    re.IGNORECASE,
)
# Not from within an escape on, in JSON that is itself a text.
_EMAIL = re.compile(
    r"[A-Za-z0-9._%+-](?<!\\[bfnrt])[A-Za-z0-9._%+-]{0,63}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+"
)
# ISO 13616: a country, two digits that check, up to 30 characters, often in fours.
_IBAN = re.compile(at_word("[A-Z]{2}") + r"[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
#: Cards: all digits that stand together, in whatever groups; or some, beside a date or a count, in the groups that
#: cards are written in, with what their numbers begin with. To try any groups would find one in most tables.
_CARDS = (
    re.compile(at_word("[0-9]") + r"(?<![0-9][ -][0-9])(?:[ -]?[0-9]){12,18}(?![ -]?[0-9])\b"),
    re.compile(
        at_word("(?:2[2-7]|[3-6][0-9])[0-9]{2}")
        + r"(?:(?:[ -][0-9]{4}){3}|[ -][0-9]{6}[ -][0-9]{4,5}|[0-9]{9,15})\b"
    ),
)
#: Bytes by their kind, as looking for a run of kinds costs a hundredth of looking for a pattern.
_KINDS = bytes(
    b"A"[0] if each in b"ABCDEFGHIJKLMNOPQRSTUVWXYZ" else b"0"[0] if each in b"0123456789" else each
    for each in range(256)
)
#: Each task has it: as many digits as a card, but a number, and those are looked at by their names alone.
_DEADLINE = re.compile(rb'"deadline":[0-9]+')
#: What there is in a message, without case, dashes and underscores, that has one of `KEYS` in a name.
_KEY_MARKS = tuple(
    glue.join(each.replace("[-_]?", "").split("[-_ ]?")[-2:]).encode()
    for each in KEYS.split("|")
    for glue in ("", " ")
)
#: How long the secrets of this process are taken to be the same, in seconds: they are found by reading all of its
#: environment.
_SECRETS_S = 1.0

#: What is done to each text of a message.
Rule: TypeAlias = Callable[[str], str]


class Redaction:
    """The rules of one environment: those of the house, and its own."""

    def __init__(self, rules: str = "") -> None:
        """Make one.

        Args:
            rules: a JSON object: `keys`, a list of regular expressions that are searched for in names of fields;
                `patterns`, an object of names and regular expressions for texts.

        Raises:
            ConfigError: it is none, or one of the expressions can't be used.
        """
        own = _read(rules)
        try:
            self._keys = re.compile("|".join((KEYS, *own["keys"])), re.IGNORECASE)
            self._own = {name: re.compile(each) for name, each in own["patterns"].items()}
        except (re.error, TypeError) as error:
            raise ConfigError(f"audit_redact: {error}", hint=_HINT) from None
        #: Names of fields were asked for before: most come again and again.
        self._known: dict[str, bool] = {}
        self._has_own_keys = bool(own["keys"])
        self._secrets: set[str] = set()
        self._look_at = 0.0

    def of(self, value: Any, raw: str) -> Any:
        """A JSON value without what must not be stored; `raw` is the text that it was read from."""
        rules = self._rules(raw)
        return self._walk(value, rules) if rules or self._may_have_keys(raw) else value

    def _may_have_keys(self, raw: str) -> bool:
        if self._has_own_keys or "\\u" in raw or not raw.isascii():
            return True
        # A quote in a text is escaped, so that this one is a name: a count.
        marks = raw.encode().lower().replace(b'"tokens":', b"").translate(None, b"_-")
        return any(mark in marks for mark in _KEY_MARKS)

    def text(self, text: str) -> str:
        """A text without secrets of this process, what looks like one, and personal data."""
        for rule in self._rules(text):
            text = rule(text)
        return text

    def _rules(self, raw: str) -> list[Rule]:
        """Those that can find something in a message: to look into each of its texts costs ten times as much."""
        # Any character may hide behind an escape, and the slashes of an address.
        hides = "\\u" in raw or "\\/" in raw
        secret = partial(scrub, secrets=self._secrets_now())
        rules: list[Rule] = [secret] if hides or secret(raw) != raw else []
        data = raw.encode(errors="replace")
        rules += [rule for name, rule in _SHAPES.items() if hides or _may_have(name, raw, data)]
        return rules + [partial(shape.sub, f"[{name}]") for name, shape in self._own.items()]

    def _secrets_now(self) -> set[str]:
        if time.monotonic() >= self._look_at:
            self._secrets, self._look_at = secrets_of_process(), time.monotonic() + _SECRETS_S
        return self._secrets

    def _walk(self, value: Any, rules: Sequence[Rule]) -> Any:
        if isinstance(value, str):
            for rule in rules:
                value = rule(value)
            return value
        if isinstance(value, dict):
            return {
                self._walk(name, rules): STRUCK
                if self._is_secret(name) and part not in (None, "")
                else self._walk(part, rules)
                for name, part in value.items()
            }
        if isinstance(value, list):
            return [self._walk(part, rules) for part in value]
        return value

    def _is_secret(self, name: str) -> bool:
        known = self._known.get(name)
        if known is None:
            known = self._keys.search(name) is not None and _NOT_KEYS.match(name) is None
            if len(self._known) < 10_000:
                self._known[name] = known
        return known


_HINT = 'give a JSON object like {"keys": ["patient"], "patterns": {"case": "C-[0-9]{6}"}}'


def _read(rules: str) -> dict[str, Any]:
    try:
        own = json.loads(rules or "{}")
        keys, patterns = own.pop("keys", []), own.pop("patterns", {})
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise ConfigError("audit_redact: this is no JSON object", hint=_HINT) from None
    if own or not isinstance(keys, list) or not isinstance(patterns, dict):
        raise ConfigError(f"audit_redact: {', '.join(own) or 'its fields'} can't be used", hint=_HINT)
    return {"keys": keys, "patterns": patterns}


def _may_have(name: str, text: str, data: bytes) -> bool:
    """Whether a text, which is `data` in bytes, may have something of this shape."""
    match name:
        case "email":
            return b"@" in data
        case "iban":
            return b"AA00" in data.translate(_KINDS)
        case _:
            digits = _DEADLINE.sub(b"", data).translate(_KINDS, b" -")
            return b"0" * 13 in digits and _strike_cards(text) != text


def _strike_cards(text: str) -> str:
    for shape in _CARDS:
        parts, done, at = list[str](), 0, 0
        while found := shape.search(text, at):
            # What does not check may begin with a number beside a card.
            at = found.start() + 1
            if _passes_luhn(found[0]):
                parts += text[done : found.start()], "[card]"
                done = at = found.end()
        text = "".join(parts) + text[done:]
    return text


def _passes_luhn(found: str) -> bool:
    """Whether the last digit checks (ISO/IEC 7812-1): most long numbers are no cards."""
    digits = [int(each) for each in found if each.isdigit()]
    doubled = [sum(divmod(2 * each, 10)) for each in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


#: What is personal by its look.
_SHAPES: Mapping[str, Rule] = {
    "email": partial(_EMAIL.sub, "[email]"),
    "iban": partial(_IBAN.sub, "[iban]"),
    "card": _strike_cards,
}
