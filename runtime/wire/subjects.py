"""The subject grammar: the one module that parses, builds and checks wire addresses.

    agents.{environment}.{message_type}.{domain}.{specificity}[.p0 … .p9]
    agents.{environment}.ordered.{mailbox}.{conversation}.{domain}.{specificity}
    agents.{environment}.ticket.{mailbox}.{conversation}.{sequence}

A *topic* is the `{domain}.{specificity}` part as people write it; a *pattern* may have `*` in either place.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from squadron.runtime.errors import InvalidSubjectError

ROOT = "agents"
#: So the reply inboxes of NATS clients begin, whatever follows: `_INBOX.…`, and those with a prefix of their own.
#: By the others the server leads an answer back to another account, or cluster; it lets nobody ask for one there.
INBOXES = ("_INBOX", "_R_.", "_GR_.")
#: Priority of a message that names none; it travels on the subject without a lane token.
NORMAL_PRIORITY = 5
#: Longest token; keeps a five-token subject far below NATS' advice of 256 bytes.
MAX_TOKEN = 64

_TOKEN = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_TOKEN}}}")
_LITE = re.compile(rf"{ROOT}\.({_TOKEN.pattern})\.lite\.({_TOKEN.pattern})\.({_TOKEN.pattern})")
_TICKET = re.compile(_LITE.pattern.replace("lite", "ticket") + r"\.([0-9]{1,20})")
#: Somebody else's address, short enough for a server's line: no wildcards, no empty tokens, no white space, and
#: not the server's own (`$JS.API…`): what a sender may not do there, we must not do for it.
_FOREIGN = re.compile(rf"(?!\$|{ROOT}\.)(?=.{{1,1000}}$)[^\s.*>]+(\.[^\s.*>]+)*")


def check_token(token: str, what: str) -> str:
    """Return `token` if it can stand between two dots of a subject.

    Raises:
        InvalidSubjectError: it is empty, too long, or has a character outside `A-Z a-z 0-9 _ -`.
    """
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise InvalidSubjectError(
            f"{what} {token!r} is not a subject token",
            hint=f"use 1 to {MAX_TOKEN} letters, digits, '_' or '-'",
        )
    return token


def token_of(anything: str) -> str:
    """A stable token for an id that somebody else chose: itself if it fits, else a digest of it."""
    if _TOKEN.fullmatch(anything):
        return anything
    return hashlib.sha256(anything.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@lru_cache(maxsize=4096)
def check_topic(topic: str) -> str:
    """Return `topic` if it is `domain.specificity`.

    Raises:
        InvalidSubjectError: it has not exactly two tokens, or one breaks the grammar.
    """
    return _check_pair(topic, wildcards=False)


def check_pattern(pattern: str) -> str:
    """Like `check_topic`, but `*` may stand for a whole token."""
    return _check_pair(pattern, wildcards=True)


def _check_pair(text: str, *, wildcards: bool) -> str:
    tokens = text.split(".") if isinstance(text, str) else []
    if len(tokens) != 2:
        raise InvalidSubjectError(
            f"topic {text!r} is not domain.specificity", hint="for example analysis.sentiment"
        )
    for what, token in zip(("domain", "specificity"), tokens, strict=True):
        if not (wildcards and token == "*"):
            check_token(token, f"{what} of topic {text!r}:")
    return text


def lane_of(subject: str) -> int:
    """The priority lane of a stored task, whatever else its subject is: a person's odd message has one, too."""
    lane = subject.split(".")[5:6]
    return int(lane[0][1]) if lane and re.fullmatch("p[0-9]", lane[0]) else NORMAL_PRIORITY


@lru_cache(maxsize=4096)
def check_queued(subject: str) -> str:
    """Return `subject` if a work queue may hold it: a task's, that of one in line, or a ticket.

    Raises:
        InvalidSubjectError: it is none of these.
    """
    kind = subject.split(".")[2:3]
    known: dict[str, type[OrderedSubject | TicketSubject]] = {"ordered": OrderedSubject, "ticket": TicketSubject}
    (known.get(kind[0], TaskSubject) if kind else TaskSubject).parse(subject)
    return subject


def is_foreign(subject: str) -> bool:
    """Whether an answer may be published there: not ours, not the server's, and a subject at all."""
    return _FOREIGN.fullmatch(subject) is not None


@lru_cache(maxsize=65_536)
def subject_matches(pattern: str, subject: str) -> bool:
    """NATS matching: `*` is one token, a last `>` is one or more."""
    wanted, given = pattern.split("."), subject.split(".")
    for i, token in enumerate(wanted):
        if token == ">":
            return len(given) > i
        if i >= len(given) or token not in ("*", given[i]):
            return False
    return len(wanted) == len(given)


def matches(pattern: str, topic: str) -> bool:
    """Whether `topic` is one of those that `pattern` stands for."""
    return all(p in ("*", t) for p, t in zip(pattern.split("."), topic.split("."), strict=True))


def overlap(one: str, other: str) -> bool:
    """Whether some topic matches both patterns."""
    pairs = zip(one.split("."), other.split("."), strict=True)
    return all(a == b or "*" in (a, b) for a, b in pairs)


@lru_cache(maxsize=4096)
def _parse_task(subject: str) -> tuple[str, str, int]:
    tokens = subject.split(".")
    if len(tokens) not in (5, 6) or tokens[0] != ROOT or tokens[2] not in ("task", "query"):
        raise InvalidSubjectError(
            f"{subject!r} is not a task subject", hint=f"{ROOT}.ENV.task.DOMAIN.SPECIFICITY[.pN]"
        )
    priority = NORMAL_PRIORITY
    if len(tokens) == 6:
        lane = tokens[5]
        if len(lane) != 2 or lane[0] != "p" or lane[1] not in "0123456789":
            raise InvalidSubjectError(f"{lane!r} in {subject!r} is not a lane", hint="p0 to p9")
        priority = int(lane[1])
    check_token(tokens[1], "environment")
    return tokens[1], check_topic(".".join(tokens[3:5])), priority


@dataclass(frozen=True, slots=True)
class TaskSubject:
    """Where a task of one topic is published; `priority` picks the lane."""

    environment: str
    topic: str
    priority: int = NORMAL_PRIORITY

    def __str__(self) -> str:
        lane = "" if self.priority == NORMAL_PRIORITY else f".p{self.priority}"
        return f"{ROOT}.{self.environment}.task.{self.topic}{lane}"

    @classmethod
    def parse(cls, subject: str) -> Self:
        """Read a task subject back.

        Raises:
            InvalidSubjectError: it is not one; the message says which token is wrong.
        """
        return cls(*_parse_task(subject))


@dataclass(frozen=True, slots=True)
class OrderedSubject:
    """Where a task of an ordered mailbox stands in line with the others of its conversation.

    `topic` is as its sender wrote it, and may break the grammar: somebody has to bury such a task, too.
    """

    environment: str
    mailbox: str
    conversation: str
    topic: str

    def __str__(self) -> str:
        return f"{ROOT}.{self.environment}.ordered.{self.mailbox}.{self.conversation}.{self.topic}"

    @property
    def task(self) -> str:
        """The subject it was published on, without its lane."""
        return f"{ROOT}.{self.environment}.task.{self.topic}"

    @classmethod
    def parse(cls, subject: str) -> Self:
        """Read the subject of a task in line back.

        Raises:
            InvalidSubjectError: it is not one.
        """
        tokens = subject.split(".")
        if len(tokens) != 7 or tokens[0] != ROOT or tokens[2] != "ordered":
            hint = f"{ROOT}.ENV.ordered.MAILBOX.CONVERSATION.DOMAIN.SPECIFICITY"
            raise InvalidSubjectError(f"{subject!r} is not of an ordered task", hint=hint)
        return cls(tokens[1], tokens[3], tokens[4], ".".join(tokens[5:]))


@dataclass(frozen=True, slots=True)
class TicketSubject:
    """The right to run the head of one conversation's line; `seq` is the head's place in the queue."""

    environment: str
    mailbox: str
    conversation: str
    seq: int

    def __str__(self) -> str:
        return f"{ROOT}.{self.environment}.ticket.{self.mailbox}.{self.conversation}.{self.seq}"

    @classmethod
    def parse(cls, subject: str) -> Self:
        """Read a ticket back.

        Raises:
            InvalidSubjectError: it is not one.
        """
        found = _TICKET.fullmatch(subject)
        if found is None:
            hint = f"{ROOT}.ENV.ticket.MAILBOX.CONVERSATION.SEQUENCE"
            raise InvalidSubjectError(f"{subject!r} is not a ticket", hint=hint)
        return cls(found[1], found[2], found[3], int(found[4]))


@dataclass(frozen=True, slots=True)
class LiteSubject:
    """A lite topic: a reply address that exists from its first publish."""

    environment: str
    owner: str
    id: str

    def __str__(self) -> str:
        return f"{ROOT}.{self.environment}.lite.{self.owner}.{self.id}"

    @classmethod
    def parse(cls, subject: str) -> Self:
        """Read a lite subject back.

        Raises:
            InvalidSubjectError: it is not one.
        """
        if found := _LITE.fullmatch(subject):
            return cls(*found.groups())
        tokens = subject.split(".")
        if len(tokens) != 5 or tokens[0] != ROOT or tokens[2] != "lite":
            raise InvalidSubjectError(f"{subject!r} is not a lite topic", hint=f"{ROOT}.ENV.lite.OWNER.ID")
        for what, token in zip(("environment", "owner", "id"), (tokens[1], *tokens[3:]), strict=True):
            check_token(token, what)
        return cls(tokens[1], tokens[3], tokens[4])


def live_of(pattern: str) -> str:
    """Where the server tells of entries of these lite topics, or of the registry, once they are stored.

    Raises:
        InvalidSubjectError: `pattern` is of neither.
    """
    root, environment, kind, *rest = pattern.split(".")
    if kind == "registry":
        return ".".join((root, environment, "told", *rest))
    return _beside(pattern, "live")


def told_there(live: str) -> str:
    """The lite topic whose entries are told on `live`: the way back of `live_of`."""
    root, environment, _, rest = live.split(".", 3)
    return f"{root}.{environment}.lite.{rest}"


def life_of(pattern: str) -> str:
    """Where it is stored when these lite topics are to end.

    Raises:
        InvalidSubjectError: `pattern` is not of lite topics.
    """
    return _beside(pattern, "life")


def _beside(pattern: str, kind: str) -> str:
    tokens = pattern.split(".")
    if len(tokens) != 5 or tokens[2] != "lite":
        raise InvalidSubjectError(f"{pattern!r} is not of lite topics", hint=f"{ROOT}.ENV.lite.OWNER.ID")
    return ".".join((*tokens[:2], kind, *tokens[3:]))


@dataclass(frozen=True, slots=True)
class Subjects:
    """All addresses of one environment.

    Args:
        outside: patterns of subjects of other systems on which answers may be published.
    """

    environment: str
    outside: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_token(self.environment, "environment")

    def task(self, topic: str, priority: int = NORMAL_PRIORITY) -> str:
        """Where a task is published; `topic` may be a pattern in a filter."""
        return str(TaskSubject(self.environment, topic, priority))

    def line(self, mailbox: str, conversation: str = "*") -> str:
        """Pattern of the tasks that stand in line in one conversation of an ordered mailbox, or in all."""
        return f"{ROOT}.{self.environment}.ordered.{mailbox}.{conversation}.*.*"

    def tickets(self, mailbox: str) -> str:
        """Pattern of the tickets of an ordered mailbox."""
        return f"{ROOT}.{self.environment}.ticket.{mailbox}.*.*"

    def lite(self, owner: str, id: str) -> str:
        """The lite topic `id` of `owner`."""
        return f"{ROOT}.{self.environment}.lite.{check_token(owner, 'owner')}.{check_token(id, 'id')}"

    def has_lite(self, subject: str) -> bool:
        """Whether this is a lite topic of this environment."""
        found = _LITE.fullmatch(subject)
        return found is not None and found[1] == self.environment

    def is_outside(self, subject: str) -> bool:
        """Whether answers may be published on a subject that is not ours: a reply inbox, or one of `outside`."""
        return subject.startswith(INBOXES) or any(subject_matches(each, subject) for each in self.outside)

    def lite_of(self, owner: str = "") -> str:
        """Pattern of all lite topics, or of those of `owner`."""
        return f"{ROOT}.{self.environment}.lite.{check_token(owner, 'owner') if owner else '*'}.*"

    def stream(self, id: str) -> str:
        """Where the chunks on a lite topic with this `id` are told to whoever listens now: a live view."""
        return f"{ROOT}.{self.environment}.stream.response.{check_token(id, 'id')}"

    def hand(self, replica: str) -> str:
        """Where a replica is handed tasks that are for it."""
        return f"{ROOT}.{self.environment}.hand.{check_token(replica, 'replica')}"

    def negotiate(self, name: str) -> str:
        """Where an agent is called for bids, of whose replicas one answers; or one replica, by its own name."""
        return f"{ROOT}.{self.environment}.a2a.negotiate.{check_token(name, 'agent')}"

    def mcp(self, server_id: str, *, cancel: bool = False) -> str:
        """Where an MCP server is asked, of whose instances one answers; or where all hear what is cancelled."""
        subject = f"{ROOT}.{self.environment}.mcp.{check_token(server_id, 'server')}"
        return f"{subject}.cancel" if cancel else subject

    def result(self, topic: str) -> str:
        """Where the outcome of a task that named no `replyTo` is announced."""
        return f"{ROOT}.{self.environment}.result.{topic}"

    def event(self, topic: str) -> str:
        """Where an event is published, or a pattern of such."""
        return f"{ROOT}.{self.environment}.event.{topic}"

    def durable(self, topic: str) -> str:
        """Where a durable event is stored, or a pattern of such; the server tells it on `event(topic)`, too."""
        return f"{ROOT}.{self.environment}.durable.{topic}"

    def card(self, agent: str) -> str:
        """Registry entry: what an agent offers (or `*`)."""
        return f"{ROOT}.{self.environment}.registry.card.{agent}"

    def presence(self, agent: str, replica: str) -> str:
        """Registry entry: a living replica of an agent (or `*`)."""
        return f"{ROOT}.{self.environment}.registry.presence.{agent}.{replica}"

    def registry(self, kind: str) -> str:
        """Pattern of all registry entries of one kind: card, presence, deployment, binding."""
        return f"{ROOT}.{self.environment}.registry.{kind}.>"

    def record(self, kind: str, key: str) -> str:
        """Registry entry of any other kind: the bridge's own deployments and bindings."""
        return f"{ROOT}.{self.environment}.registry.{kind}.{check_token(key, kind)}"

    def dead(self, mailbox: str, id: str) -> str:
        """Where a dead letter is buried."""
        return f"{ROOT}.{self.environment}.dead.{mailbox}.{token_of(id)}"

    def dead_of(self, mailbox: str = "") -> str:
        """Pattern of all dead letters, or of those of one mailbox."""
        return f"{ROOT}.{self.environment}.dead.{check_token(mailbox, 'mailbox') if mailbox else '*'}.>"

    def run(self, id: str = "") -> str:
        """Where the log of one run is kept, or pattern of all of them."""
        return f"{ROOT}.{self.environment}.run.{check_token(id, 'run') if id else '*'}"

    @property
    def all(self) -> str:
        """Pattern of everything that passes."""
        return f"{ROOT}.{self.environment}.>"

    def control(self, verb: str) -> str:
        """Where the bridge is asked to do something (or `*`)."""
        return f"{ROOT}.{self.environment}.bridge.{verb}"
