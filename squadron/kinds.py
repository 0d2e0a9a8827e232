"""How settings are read from text: which values can be used, and what to give instead of others."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squadron.runtime.secret import Secret
from squadron.runtime.trust.verify_modes import VerifyModes

#: Subjects that are not ours, and not the server's; the first token is no wildcard.
_OUTSIDE = re.compile(r"(?!\$|agents\.)[^\s.*>]+(\.(\*|[^\s.*>]+))*(\.>)?")
_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@dataclass(frozen=True, slots=True)
class Kind:
    """How a value is read from text, which values can be used, and what to give instead of others."""

    read: Callable[[Any], Any] = lambda raw: str(raw).strip()
    fits: Callable[[Any], bool] = lambda _: True
    fix: str = ""


def _is_object(text: str) -> bool:
    try:
        return text == "" or isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _are_outside(text: str) -> bool:
    return all(_OUTSIDE.fullmatch(each.strip()) for each in text.split(",") if each.strip())


def _is_address(text: str) -> bool:
    found = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+):(\d{1,5})", text)
    return found is not None and int(found[1]) < 2**16


def _is_verify(text: str) -> bool:
    try:
        return bool(VerifyModes.parse(text))
    except ValueError:
        return False


TEXT = Kind()
#: A blank in it may be meant; the line break of a file of secrets is not.
SECRET = Kind(lambda raw: raw if isinstance(raw, Secret) else Secret(str(raw).rstrip("\r\n")))
LEVEL = Kind(
    lambda raw: str(raw).strip().upper(), _LOG_LEVELS.__contains__, f"use one of {', '.join(_LOG_LEVELS)}"
)
PATH = Kind(lambda raw: Path(raw).expanduser().absolute(), Path.is_absolute, "give an absolute path")
#: It has to be there when it is loaded.
FILE = Kind(PATH.read)
SECONDS = Kind(
    float, lambda it: math.isfinite(it) and it > 0, "give a number of seconds greater than 0, like 5 or 2.5"
)
BYTES = Kind(int, fix="give a whole number of bytes, like 524288")
#: What is in it is checked where it is used.
LIMITS = Kind(fits=_is_object, fix='give a JSON object like {"openai": {"rpm": 500, "tpm": 200000}}')
PRICES = Kind(fits=_is_object, fix='give a JSON object like {"openai:my-model": {"input": 1, "output": 4}}')
ADDRESS = Kind(
    fits=lambda it: it == "off" or _is_address(it),
    fix="give host:port, like 127.0.0.1:9464, or off",
)
#: These are `bridge.jetstream.audit_streams.MODES`.
AUDIT = Kind(
    lambda raw: str(raw).strip().lower(), ("", "off", "trail", "full").__contains__, "use off, trail or full"
)
VERIFY = Kind(
    lambda raw: str(VerifyModes.parse(str(raw))),
    _is_verify,
    "use off, warn or require, and for some topics others: warn,clinic.*=require",
)
#: A batch is made of 256 KiB at most: in less than some of them nothing would stay.
TRAIL_BYTES = Kind(int, lambda it: it == -1 or it >= 4 * 1024**2, "give -1, or 4194304 bytes or more")
DAYS = Kind(float, lambda it: 1 <= it <= 36_500, "give a number of days from 1 to 36500")
YES_NO = Kind(lambda raw: str(raw).strip().lower(), ("yes", "no").__contains__, "use yes or no")
RULES = Kind(
    fits=_is_object, fix='give a JSON object like {"keys": ["patient"], "patterns": {"case": "C-[0-9]{6}"}}'
)
#: Not ours, and not the server's: what a sender may not do there, an agent must not do for it.
SUBJECTS = Kind(
    fits=_are_outside,
    fix="give NATS subjects outside of agents. and $, by commas, like shop.answers.>",
)
DIGEST = Kind(
    lambda raw: str(raw).strip().lower(),
    lambda it: re.fullmatch("([0-9a-f]{64})?", it) is not None,
    "give the 64 hexadecimal digits that `sha256sum` shows",
)
#: Where subjects of NATS begin.
PREFIX = Kind(
    fits=lambda it: re.fullmatch(r"[A-Za-z0-9_$-]+(\.[A-Za-z0-9_$-]+)*", it) is not None,
    fix="give tokens of letters, digits, '_', '-' or '$' with dots between them",
)
NAME = Kind(
    fits=lambda it: re.fullmatch(r"[A-Za-z0-9_-]{1,64}", it) is not None,
    fix="give a name of letters, digits, '_' or '-'",
)
OWN = Kind(
    fits=lambda it: re.fullmatch(r"([A-Za-z0-9_-]{1,64}|\*)?", it) is not None,
    fix="give the name of an agent, or * for the bridge",
)
#: JetStream has no more than five.
COPIES = Kind(int, range(1, 6).__contains__, "give 1, 3 or 5: as many servers are needed")
COUNT = Kind(int, lambda it: it >= 1, "give a whole number, 1 or more, like 100000")
