"""Where an answer may go: a sender gets none written for it where it has no business.

Who answers does so with rights of its own, and an address is no more than a text in a message. So the owner of a
lite topic has to be the sender's own, and subjects of other systems have to be allowed.
"""

from __future__ import annotations

import re

from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.subjects import LiteSubject, Subjects, is_foreign, token_of

#: Ends the owner of the lite topics that a process of ours has its outcomes sent to.
ASKS = "-asks"
#: Owners that hold what an environment knows: nobody has outcomes sent there.
_INTERNAL = frozenset(
    "begun cancel cursor doctor model-account model-pause outcome parked people replay".split()  # noqa: SIM905
)
#: The same of each agent: its memory, its talks, its notes.
_INTERNAL_OF = re.compile(r"(memory|notes|talk)-.*(?<!-asks)")
#: What is noted beside a task, under its id.
_NOTES = re.compile(r"asked|begun(-[0-9a-f]+)?|spent(-[0-9]+)?")
_RUN = re.compile(r"run-[0-9a-f]{24}")
_INSTANCE = re.compile(r"(.+)-[0-9a-f]{1,32}")


def principal_of(source_id: str) -> str:
    """Who a process belongs to: `analyst-0a1b2c3d` and any other replica are `analyst`."""
    found = _INSTANCE.fullmatch(source_id)
    return found[1] if found else source_id


def asks_of(source_id: str) -> str:
    """The owner of the lite topics that a process of ours has its outcomes sent to."""
    return token_of(f"{source_id}{ASKS}")


def is_own_id(message: AgentMessage, subjects: Subjects) -> bool:
    """Whether a task's outcome goes where its id says: an id of its sender's own, which others may know."""
    id = token_of(message.id)
    return message.reply_to == subjects.lite(id, id)


def unfit_reply(message: AgentMessage, subjects: Subjects) -> str:
    """Why the sender of a message can't have an answer sent to its `replyTo`, or the empty string.

    A lite topic is fit if its owner is the sender, what the sender is a process of, either with `-asks`, or, of a
    task, its id or what its id begins with: that of the run that asks. Of a query it may be a run. Elsewhere only
    reply inboxes are, and what the settings allow.
    """
    to = message.reply_to
    if to is None:
        return ""
    if not subjects.has_lite(to):
        if is_foreign(to) and subjects.is_outside(to):
            return ""
        return f"no answers are sent to {to[:100]!r}: it is neither a lite topic nor an inbox"
    address = LiteSubject.parse(to)
    owner, sender = address.owner, message.source.id
    if owner == f"{sender}{ASKS}" and not _NOTES.fullmatch(address.id):
        return ""  # nearly all
    if owner in _INTERNAL or _INTERNAL_OF.fullmatch(owner) or _NOTES.fullmatch(address.id):
        return f"no answers are sent to {to!r}: it is not for outcomes"
    principal = principal_of(sender)
    if owner in (token_of(sender), asks_of(sender), token_of(principal), asks_of(principal)):
        return ""
    if message.type == "query" and _RUN.fullmatch(owner):
        return ""
    if address.id == token_of(message.id) and (owner == address.id or message.id.startswith(f"{owner}-")):
        return ""
    return f"no answers are sent to {to!r}: its owner is neither {sender!r} nor of the task"
