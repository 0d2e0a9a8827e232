"""The lines of an ordered mailbox: who stands in them, and who is called."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from squadron.runtime.errors import MessageTooLargeError
from squadron.runtime.ports.journal import Entry
from squadron.runtime.ports.queue import Delivery, Mailbox, Store, sent_with
from squadron.runtime.trust.carried import carry
from squadron.runtime.wire.subjects import MAX_TOKEN, OrderedSubject, Subjects, TicketSubject

#: Header of a task in line that nobody can have begun before it stood there, and that came under its own id: when
#: it came, in seconds since the epoch.
FRESH = "Squadron-Fresh"
#: Header of a ticket that holds its task: where that stands in line.
STANDS_AT = "Squadron-Stands-At"
#: End the message ids of a task in line, and of a ticket that holds it; before stands the one that it came with.
IN_LINE, CALLED = ".ordered", ".called"
#: A ticket that holds its task is believed if the task came no longer before it, in seconds: the server knows ids
#: for twice as long, so there was no other ticket of it.
CALLED_WITHIN_S = 60.0
#: So much is kept of each token of a topic, in characters: four times what one may have. With what a place in line
#: has beside it, a subject is to be no longer than a server takes.
LONGEST_IN_LINE = 4 * MAX_TOKEN


@dataclass(frozen=True, slots=True)
class WaitingLines:
    """The lines of one mailbox, one for each conversation; `intake` is the store of what is not in line yet."""

    store: Store
    intake: Store
    subjects: Subjects
    mailbox: Mailbox

    async def join(self, delivery: Delivery, conversation: str, id: str, *, fresh: bool, behind: bool) -> bool:
        """Put a task at the end of its line; the same delivery again changes nothing.

        Returns whether it found its line empty, and has its ticket. Otherwise the head is to be called.

        Raises:
            MessageTooLargeError: the server takes less by now than it took when it came.

        Args:
            id: that the task says it has, as a token.
            fresh: whether surely nobody was delivered it before.
            behind: whether others were put into this line a moment ago.
        """
        # What is cut is no topic: somebody has to bury it.
        topic = ".".join(token[:LONGEST_IN_LINE] for token in delivery.subject.split(".")[3:5])
        place = str(OrderedSubject(self.subjects.environment, self.mailbox.name, conversation, topic))
        # Under the message id that it came with, so that the head of the line is known to have come under it.
        came_with = delivery.headers.get("Nats-Msg-Id", "")
        msg_id = f"{self.mailbox.name}.{came_with or delivery.seq}{IN_LINE}"
        headers = _taken_along(delivery.headers, delivery.subject, delivery.stored_at)
        if fresh and came_with == id:
            headers[FRESH] = repr(delivery.stored_at)
        try:
            if FRESH in headers and not behind:
                line, seq = self.subjects.line(self.mailbox.name, conversation), 0
                # With the condition it may be too large where it is not without.
                with contextlib.suppress(MessageTooLargeError):
                    how: dict[str, Any] = {"msg_id": msg_id, "headers": headers}
                    seq = await self.store.put_alone(place, delivery.data, among=line, **how)
                if seq:
                    await self._call(conversation, seq, place, delivery.data, headers, came_with)
                    return True
            await self.store.put(place, delivery.data, msg_id=msg_id, headers=headers)
        except MessageTooLargeError:
            # It came without headers and leaves no room for one, nor for a signature, which would say that it is
            # ours; it must not hold up all others for ever.
            await self.store.put(place, delivery.data, msg_id="", signed=False)
        return False

    async def head(self, conversation: str = "*") -> Entry | None:
        """Who is first in a line, or in any."""
        return await self.store.head(self.subjects.line(self.mailbox.name, conversation))

    async def call(self, conversation: str) -> None:
        """See to it that the head of a line has its one ticket.

        Everybody who changed a line does so before he settles what he holds. A ticket is there until its task
        has left the line, so there are never two for one head.
        """
        head = await self.head(conversation)
        if head is not None:
            await self.store.put_alone(self._ticket(conversation, head.seq), b"")

    async def leave(self, conversation: str, seq: int) -> None:
        """Take the head off its line, and call the next."""
        await self.store.discard(seq)
        if not await self.store.holds(self.subjects.line(self.mailbox.name, conversation)):
            return
        head = await self.head(conversation)
        if head is not None:
            headers = _taken_along(head.headers, head.key, head.time)
            if came_at := head.headers.get(FRESH):
                headers[FRESH] = came_at
            await self._call(conversation, head.seq, head.key, head.data, headers, self.came_with(head, IN_LINE))

    async def _call(
        self, conversation: str, seq: int, place: str, data: bytes, headers: dict[str, str], came_with: str
    ) -> None:
        """Make a head's ticket: one that holds the task if who gets it need not look whether it is the head still.

        Under an id, so that whoever calls late, when the task has left, makes no other. An id may be known
        although there is no such ticket: when a killed server brought an earlier task back into the line, its
        ticket was settled. An empty one is always right.
        """
        ticket = self._ticket(conversation, seq)
        if FRESH in headers:
            msg_id = f"{self.mailbox.name}.{came_with}{CALLED}"
            with contextlib.suppress(MessageTooLargeError):
                holding = headers | {STANDS_AT: place}
                if await self.store.put_alone(ticket, data, msg_id=msg_id, headers=holding):
                    return
        await self.store.put_alone(ticket, b"")

    def _ticket(self, conversation: str, seq: int) -> str:
        return str(TicketSubject(self.subjects.environment, self.mailbox.name, conversation, seq))

    def came_with(self, stored: Entry | Delivery, ending: str) -> str:
        """The message id with which a task came that was put into its line, or its ticket."""
        return stored.headers.get("Nats-Msg-Id", "").removeprefix(f"{self.mailbox.name}.").removesuffix(ending)


def _taken_along(headers: Mapping[str, str], subject: str, at: float) -> dict[str, str]:
    return sent_with(headers) | carry(headers, subject, at=at)


def ticket_box(subjects: Subjects, mailbox: Mailbox) -> Mailbox:
    """The mailbox of an ordered mailbox's tickets."""
    return Mailbox(f"{mailbox.name}=tickets", (), mailbox.lease_s, subject=subjects.tickets(mailbox.name))


def line_box(subjects: Subjects, mailbox: Mailbox) -> Mailbox:
    """The mailbox of all that stands in line. Nobody takes from it: it is there to be counted."""
    return Mailbox(f"{mailbox.name}=line", (), mailbox.lease_s, subject=subjects.line(mailbox.name))
