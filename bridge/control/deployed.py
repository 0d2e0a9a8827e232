"""What is deployed: the bridge's own copy, and how mailboxes, journal and registry are made to agree with it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

import structlog
from pydantic import ValidationError

from squadron.runtime.errors import InvalidSubjectError, RouteConflictError, UntrustedError
from squadron.runtime.ports.journal import Entry, Journal
from squadron.runtime.ports.queue import Mailbox, Queue
from squadron.runtime.registry.registry import STAND_IN, Registry
from squadron.runtime.running.permission import check_kept
from squadron.runtime.store.port_set import Ports
from squadron.runtime.trust.guard import Guard
from squadron.runtime.trust.may_say import KEEPERS, only
from squadron.runtime.wire.deployment import Deployment
from squadron.runtime.wire.subjects import Subjects, check_token, overlap
from squadron.runtime.wire.topics import AgentCard


def check_deployable(ports: Ports, wanted: Deployment, cards: Iterable[AgentCard]) -> None:
    """Check that an agent can serve its topics beside what these cards serve, and hold to who may ask them.

    Raises:
        RouteConflictError: another agent serves one of them.
        ConfigError: one is only for some, and here nobody looks who asks.
    """
    for mine in wanted.card.topics:
        check_kept(ports, mine)
    for card in cards:
        if card.agent == wanted.agent:
            continue
        for pattern in wanted.patterns:
            for theirs in card.topics:
                if overlap(pattern, theirs.name):
                    raise RouteConflictError(
                        f"{pattern!r} of {wanted.agent} overlaps {theirs.name!r} of {card.agent}",
                        hint=f"undeploy {card.agent}, or name the topics apart",
                    )


async def is_kept(guard: Guard | None, entry: Entry) -> bool:
    """Whether a record was written by who may, as far as that is checked.

    Raises:
        BusUnavailableError: nobody says who signed it.
    """
    if guard is None:
        return True
    try:
        await guard.admit("record", entry.key, entry.data, entry.headers, at=entry.time, may=only(*KEEPERS))
    except UntrustedError:
        return False
    return True


class Deployed:
    """Agents by name, as they shall run. All of it is in the journal: the next bridge loads it.

    What was changed here, or is not there as it is here, is noted by `note` and written by `put_right`. What could
    not be written stays noted.
    """

    def __init__(
        self,
        queue: Queue,
        records: Journal,
        registry: Registry,
        subjects: Subjects,
        *,
        lease_s: float,
        guard: Guard | None = None,
        seal_key: Callable[[str], str] = lambda _: "",
    ) -> None:
        self._guard, self._seal_key = guard, seal_key
        self._queue, self._records, self._registry, self._subjects = queue, records, registry, subjects
        self._lease_s = lease_s
        self.agents: dict[str, Deployment] = {}
        #: Undeployed agents whose replicas may still finish turns: until then they need their mailbox.
        self.leaving: set[str] = set()
        #: Code that travels by value, by its version: a replica that starts reads it from the journal.
        self._blobs: dict[str, bytes] = {}
        #: Cards of others that are to be written again.
        self._cards: dict[str, AgentCard] = {}
        #: What is to be written, by kind and name, in order.
        self._noted: dict[tuple[str, str], None] = {}
        self._log = structlog.get_logger("squadron.bridge")

    async def load(self) -> None:
        """Take up what is recorded."""
        for entry in await self._records.latest(self._subjects.registry("deployment")):
            if entry.data and await is_kept(self._guard, entry):
                try:
                    deployment = Deployment.model_validate_json(entry.data)
                except (ValidationError, InvalidSubjectError) as error:
                    self._log.error("bridge.bad_record", key=entry.key, error=str(error))
                    continue
                self.agents[deployment.agent] = deployment
        for entry in await self._records.latest(self._subjects.registry("leaving")):
            with contextlib.suppress(InvalidSubjectError):
                self.leaving.add(check_token(entry.key.rsplit(".", 1)[-1], "agent"))
        for deployment in list(self.agents.values()):
            try:
                await self._queue.declare(self._mailbox(deployment))
            except RouteConflictError as error:
                # Not written by a bridge: the others must come up all the same.
                self._log.error("bridge.bad_record", key=deployment.agent, error=str(error))
                del self.agents[deployment.agent]
                continue
            await self._registry.advertise(self._card(deployment))
        await self.keep_code()

    def _mailbox(self, deployment: Deployment) -> Mailbox:
        ordered = deployment.ordered_by != ""
        return Mailbox(deployment.agent, deployment.patterns, self._lease_s, ordered=ordered)

    def _card(self, deployment: Deployment) -> AgentCard:
        return deployment.card.with_key(self._seal_key(deployment.agent))

    async def keep_code(self) -> None:
        """Have a copy of all code that travelled by value, and of no other."""
        blobs = {}
        for version in {each.code["version"] for each in self.agents.values() if not each.code.get("import_path")}:
            if (blob := self._blobs.get(version)) is None:
                entry = await self._records.last(self._subjects.record("blob", version))
                blob = entry.data if entry is not None and await is_kept(self._guard, entry) else None
            if blob is not None:
                blobs[version] = blob
        self._blobs = blobs

    def note(self, kind: str, *names: str) -> None:
        """Something is to be written: "mailbox", "deployment", "leaving", "card", "code" or "other card"."""
        self._noted.update(dict.fromkeys((kind, name) for name in names))

    def note_all(self) -> None:
        """Nothing of it is there any more, not even what others wrote: this process's copy is all there is."""
        others = [card for card in self._registry.cards() if card.agent not in self.agents]
        self._cards = {card.agent: card for card in others}
        # Code first: a replica that starts needs it.
        self.note("code", *self._blobs)
        for kind in ("mailbox", "deployment", "card"):
            self.note(kind, *self.agents)
        self.note("leaving", *self.leaving)
        self.note("other card", *self._cards)

    def overwritten(self, kind: str, agent: str, data: bytes) -> None:
        """Somebody wrote a record: if it is ours and not as it is here, it is to be written again."""
        deployment = self.agents.get(agent)
        if deployment is not None:
            ours = deployment if kind == "deployment" else self._card(deployment)
            if data != ours.model_dump_json().encode():
                self.note(kind, agent)

    async def put_right(self) -> None:
        """Write what is noted.

        Raises:
            SquadronError: something could not be written; next time it comes last.
        """
        while self._noted:
            kind, name = next(iter(self._noted))
            del self._noted[kind, name]
            try:
                await self.write(kind, name)
            except BaseException:
                self._noted.setdefault((kind, name))
                raise

    async def write_all(self, kind: str, names: Iterable[str]) -> None:
        """`write` for each of the names."""
        for name in names:
            await self.write(kind, name)

    async def write(self, kind: str, name: str) -> None:
        """Make one thing outside be as it is here.

        Raises:
            RouteConflictError: another mailbox serves one of the topics.
            BusUnavailableError: the server can't be reached, or refuses.
        """
        deployment = self.agents.get(name)
        match kind:
            case "mailbox" if deployment is not None:
                await self._queue.declare(self._mailbox(deployment))
            case "mailbox" if name not in self.leaving:
                await self._queue.remove(name)
            case "deployment" if deployment is not None:
                key = self._subjects.record("deployment", name)
                await self._records.append(key, deployment.model_dump_json().encode())
            case "leaving" if name in self.leaving:
                await self._records.append(self._subjects.record("leaving", name), b"{}")
            case "deployment" | "leaving":
                await self._records.erase(self._subjects.record(kind, name))
            case "card" if deployment is not None:
                await self._registry.advertise(self._card(deployment))
                await self._registry.renew(name, STAND_IN)
            case "card":
                await self._registry.withdraw(name)
                await self._registry.depart(name, STAND_IN)
            case "code" if name in self._blobs:
                await self._records.append(self._subjects.record("blob", name), self._blobs[name])
            case "other card" if (card := self._cards.pop(name, None)) is not None:
                await self._registry.advertise(card)
