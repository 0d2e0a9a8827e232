"""The lines of an ordered mailbox: who stands in them, and who is called."""

from __future__ import annotations

from dataclasses import dataclass

from squadron.runtime.errors import MessageTooLargeError
from squadron.runtime.ports.journal import Entry
from squadron.runtime.ports.queue import Delivery, Mailbox, Store, sent_with
from squadron.runtime.trust.carried import carry
from squadron.runtime.wire.subjects import OrderedSubject, Subjects, TicketSubject

#: Header of a task in line that nobody can have begun before it stood there, and that came under its own id.
FRESH = "Squadron-Fresh"
#: Ends the message id of a task in line; before it stands the one that the task was put with.
IN_LINE = ".ordered"


@dataclass(frozen=True, slots=True)
class WaitingLines:
    """The lines of one mailbox, one for each conversation; `intake` is the store of what is not in line yet."""

    store: Store
    intake: Store
    subjects: Subjects
    mailbox: Mailbox

    async def join(self, delivery: Delivery, conversation: str, id: str, *, fresh: bool) -> None:
        """Put a task at the end of its line; the same delivery again changes nothing.

        Args:
            id: that the task says it has, as a token.
            fresh: whether surely nobody was delivered it before.
        """
        topic = ".".join(delivery.subject.split(".")[3:5])
        place = OrderedSubject(self.subjects.environment, self.mailbox.name, conversation, topic)
        # Under the message id that it came with, so that the head of the line is known to have come under it.
        came_with = delivery.headers.get("Nats-Msg-Id", "")
        msg_id = f"{self.mailbox.name}.{came_with or delivery.seq}{IN_LINE}"
        try:
            headers = sent_with(delivery.headers) | carry(
                delivery.headers, delivery.subject, at=delivery.stored_at
            )
            if fresh and came_with == id:
                headers[FRESH] = "1"
            await self.store.put(str(place), delivery.data, msg_id=msg_id, headers=headers)
        except MessageTooLargeError:
            # It came without headers and leaves no room for one; it must not hold up all others for ever.
            await self.store.put(str(place), delivery.data, msg_id="")

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
            ticket = TicketSubject(self.subjects.environment, self.mailbox.name, conversation, head.seq)
            await self.store.put_alone(str(ticket), b"")

    async def leave(self, conversation: str, seq: int) -> None:
        """Take the head off its line, and call the next."""
        await self.store.discard(seq)
        await self.call(conversation)


def ticket_box(subjects: Subjects, mailbox: Mailbox) -> Mailbox:
    """The mailbox of an ordered mailbox's tickets."""
    return Mailbox(f"{mailbox.name}=tickets", (), mailbox.lease_s, subject=subjects.tickets(mailbox.name))


def line_box(subjects: Subjects, mailbox: Mailbox) -> Mailbox:
    """The mailbox of all that stands in line. Nobody takes from it: it is there to be counted."""
    return Mailbox(f"{mailbox.name}=line", (), mailbox.lease_s, subject=subjects.line(mailbox.name))
