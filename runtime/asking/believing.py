"""Whether what comes back to who asked is from whom it should be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from squadron.runtime.errors import BusUnavailableError, UntrustedError
from squadron.runtime.ports.journal import Entry
from squadron.runtime.trust.guard import Guard, Kind, May
from squadron.runtime.trust.may_say import KEEPERS, check_source, is_agent
from squadron.runtime.trust.signature_check import Signed
from squadron.runtime.trust.verify_modes import VerifyMode

if TYPE_CHECKING:
    from squadron.runtime.registry.registry import Registry


class Awaited(NamedTuple):
    """A task, as its results are held against it by who asked and by who runs it.

    Attributes:
        sender: who asked; of a task under an id of its own, who did so first.
        digest: SHA-256 of the task as it was sent; empty if it may be sent by several, or again.
    """

    topic: str
    sender: str
    digest: str


def check_answer(
    task: Awaited, registry: Registry, signed: Signed, raw: Mapping[str, Any], *, me: str = ""
) -> None:
    """Check that who signed a result may answer a task, and has answered just that.

    Args:
        me: the agent that serves its topic, whatever the registry knows of that by now.

    Raises:
        UntrustedError: it may not, or answers another.
    """
    check_source(signed, str(raw["source"]["id"]))
    by, content = signed.by, raw["payload"].get("content")
    if by.covers(task.sender) or (is_cancellation(content) and by.role in KEEPERS):
        # Who asked gave it up, in whichever process, or an operator did.
        return
    if not is_agent(by, me):
        check_agent(registry, task.topic, signed)
    metadata = raw.get("metadata") or {}
    if metadata.get("refused") is True:
        # It ends nothing.
        return
    answered = metadata.get("answers")
    sha256, asker = (answered.get("sha256"), answered.get("by")) if isinstance(answered, dict) else (None, None)
    if task.digest:
        if sha256 != task.digest:
            raise UntrustedError(f"{by.name} answers another task of this id")
    elif not isinstance(asker, str) or not is_of(asker, task.sender):
        # It may have been sent by another process, or before: then it counts who sent it.
        raise UntrustedError(f"{by.name} answers a task that somebody else sent under this id")


def check_agent(registry: Registry, topic: str, signed: Signed) -> None:
    """Check that who signed serves a topic.

    Raises:
        UntrustedError: it does not, as far as is known.
    """
    by = signed.by
    serves = by.role == "agent" and registry.serves(by.name, topic)
    if not serves and by.role != "bridge":
        raise UntrustedError(f"{by.name} ({by.role}) does not serve {topic}")


def is_refuted(registry: Registry, topic: str, source_id: str, content: Any) -> bool:
    """Whether a result of this topic is of nobody who has a say in it: of an agent that is known to serve others.

    Who is not in the registry may serve the topic all the same, or may have done so. Who asked may have stored
    that it gave up, whichever process of it that was.
    """
    return not is_cancellation(content) and registry.refutes(source_id, topic)


def is_cancellation(content: Any) -> bool:
    """Whether a result says that its task was cancelled."""
    # Without `success` all of it is data; see `outcome.from_content`.
    return isinstance(content, dict) and content.get("success") is False and content.get("outcome") == "cancelled"


def least_of(registry: Registry, topic: str) -> VerifyMode:
    """What the author of a topic wants at least, by its card."""
    return "off" if (found := registry.find(topic)) is None else found.verify


def is_of(name: str, source_id: str) -> bool:
    """Whether a source is a process of the principal of this name."""
    return source_id == name or source_id.rpartition("-")[0] == name


async def believes(
    guard: Guard, kind: Kind, entry: Entry, may: May, *, topic: str = "", least: VerifyMode = "off"
) -> bool:
    """Whether an entry that was read counts.

    Raises:
        BusUnavailableError: nobody says who signed it.
    """
    try:
        await guard.admit(
            kind, entry.key, entry.data, entry.headers, at=entry.time, may=may, topic=topic, least=least
        )
    except UntrustedError:
        return False
    return True


async def learn_who(guard: Guard, heard: Entry) -> None:
    """Know who signed a message, if anybody does, before it is looked at."""
    try:
        await guard.verifier.learn_signer(heard.headers)
    except (UntrustedError, BusUnavailableError):
        # It is found out when it is checked.
        return
