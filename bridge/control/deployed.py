"""What is deployed: the bridge's own copy, and how mailboxes, journal and registry are made to agree with it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from pydantic import ValidationError

from squadron.runtime.errors import (
    BusUnavailableError,
    ConfigError,
    IncompatibleVersionError,
    InvalidMessageError,
    InvalidShareError,
    InvalidSubjectError,
    NotThereError,
    RouteConflictError,
    UntrustedError,
)
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.journal import Entry, Journal
from squadron.runtime.ports.queue import Mailbox, Queue
from squadron.runtime.registry.registry import STAND_IN, Registry
from squadron.runtime.running.permission import check_kept
from squadron.runtime.store.port_set import Ports
from squadron.runtime.trust.guard import Guard
from squadron.runtime.trust.may_say import KEEPERS, only
from squadron.runtime.wire.canary_share import check_share
from squadron.runtime.wire.deployment import AgentState, Deployment, this_python
from squadron.runtime.wire.schema_changes import breaks_of, with_changes
from squadron.runtime.wire.subjects import Subjects, check_token, overlap
from squadron.runtime.wire.topics import AgentCard

#: So many signs of life a second are given for agents at zero at most: of 200 each has one in 40 s. Each
#: is an entry that the server stores and all who follow the registry take in.
STAND_INS_PER_S = 5

#: Serve's words for an agent that takes tasks, or soon will.
_ALIVE = frozenset(("RUNNING", "DEPLOYING", "UPDATING", "NOT_STARTED", "AUTOSCALING", "HEALTHY"))


def check_deployable(ports: Ports, wanted: Deployment, cards: Iterable[AgentCard]) -> None:
    """Check that an agent can serve its topics beside what these cards serve, and hold to who may ask them.

    Raises:
        RouteConflictError: another agent serves one of them.
        ConfigError: one is only for some, and here nobody looks who asks; or its code is of another Python.
        InvalidAgentError: it can't be in the group that it names.
    """
    # All nodes of a cluster have one Python: Ray lets no other join.
    here = this_python()
    if (python := wanted.code.get("python", here)) != here:
        raise ConfigError(
            f"the code of {wanted.agent} was compiled by Python {python}, and the cluster runs {here}",
            hint=f"deploy it with Python {here}, or install it on the cluster and deploy it by name",
        )
    wanted.check_group()
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


def checked(
    ports: Ports,
    deployed: Mapping[str, Deployment],
    wanted: Iterable[Deployment],
    cards: Sequence[AgentCard],
    now: float,
) -> list[Deployment]:
    """What is wanted beside and in the place of what is deployed, as it is to be.

    Raises:
        RouteConflictError, ConfigError, InvalidAgentError: as `check_deployable`, of these among themselves, too.
    """
    made: list[Deployment] = []
    for each in wanted:
        if (before := deployed.get(each.agent)) is not None:
            each = succeeding(before, each, now)
        check_deployable(ports, each, [*cards, *(other.card for other in made)])
        made.append(each)
    return made


def succeeding(before: Deployment, wanted: Deployment, now: float) -> Deployment:
    """What is deployed in the place of an earlier deployment: it goes on with what somebody did by hand, and its
    topics say what of them is not as it was. Of its canary that is the end, at once or by promotion."""
    scale = before.scale if before.scale != before.bounds else wanted.scale
    day = datetime.fromtimestamp(now, UTC).date().isoformat()
    card = with_changes(before.card, wanted.card, day)
    made = wanted.model_copy(update={"scale": scale, "generation": before.generation, "card": card})
    if wanted.canary is None and before.canary is not None:
        # One of the same code works until this runs, so that there is never less of it than before.
        kept = made.model_copy(update={"canary": before.canary})
        return kept if kept.is_promoted else made
    return made


def beside(before: Deployment, canary: Deployment, *, force: bool) -> Deployment:
    """An agent with another version of its code beside the one that serves.

    Args:
        force: even if callers of the one that serves would not be understood.

    Raises:
        ConfigError: the two can't be beside each other.
        InvalidAgentError: it can't be in the group of the one that serves, where it would be once promoted.
        IncompatibleVersionError: it takes or gives something else; says what.
    """
    agent, code = before.agent, canary.code
    if before.is_promoted:
        raise _is_promoted(agent)
    canary = canary.model_copy(update={"canary": None, "group": before.group})
    canary.check_group()
    if code["version"] == before.code["version"]:
        raise ConfigError(f"{agent} runs that code already", hint="a canary is another version of it")
    if (path := code.get("import_path")) and path == before.code.get("import_path"):
        hint = "deploy it from the folder of its project, so that its code travels, or give it another name"
        raise ConfigError(f"both versions of {agent} are {path}, of which a node has one", hint=hint)
    if canary.ordered_by != before.ordered_by:
        raise ConfigError(f"one version of {agent} keeps its tasks in order, and one does not", hint="deploy it")
    if (told := breaks_of(before.card, canary.card)) and not force:
        raise IncompatibleVersionError(
            f"the canary of {agent} is not what its callers know: {'; '.join(told)}",
            hint="--force tries it all the same; a plain deploy tells callers what changed",
        )
    return before.model_copy(update={"canary": canary})


def _is_promoted(agent: str) -> ConfigError:
    hint = "wait until it serves, or deploy what is to serve instead"
    return ConfigError(f"the canary of {agent} is promoted already", hint=hint)


def with_canary(before: Deployment, to: object, now: float) -> Deployment:
    """An agent after its canary was changed.

    Args:
        to: the canary's share in percent, `promote` to have it serve instead, or `abort` to have it gone.

    Raises:
        ConfigError: it has none, or serves already.
        InvalidShareError: that is nothing to change it to.
    """
    if (canary := before.canary) is None:
        raise NotThereError(f"{before.agent} has no canary", hint="squadron deploy MODULE:AGENT --canary 10%")
    if before.is_promoted:
        if to == "promote":
            return before
        raise _is_promoted(before.agent)
    if to == "abort":
        return before.model_copy(update={"canary": None})
    if to == "promote":
        return succeeding(before, canary.model_copy(update={"weight": None}), now)
    if not (isinstance(to, str) and to.isascii() and to.isdecimal() and len(to) <= 3 and int(to) <= 100):
        hint = "a whole percent from 0 to 100, promote or abort"
        raise InvalidShareError(f"{to!r} is no share of tasks", field="to", hint=hint)
    return before.model_copy(update={"canary": canary.model_copy(update={"weight": int(to)})})


def asked_for(deployments: object, *, canary: bool) -> list[Deployment]:
    """What a call wants to have run.

    Args:
        canary: beside what serves, each with a share of its tasks.

    Raises:
        InvalidShareError: a share is none, or there is one though nothing is beside it.
        InvalidMessageError, ValueError: they are no deployments.
    """
    if not isinstance(deployments, list) or not all(isinstance(each, dict) for each in deployments):
        raise InvalidMessageError("the deployments are no list of objects", field="deployments")
    for each in deployments:
        if canary:
            check_share(each.get("weight"))
        elif each.get("weight") is not None:
            hint = "deploy it as a canary, or without"
            raise InvalidShareError("only a canary has a share of tasks", field="weight", hint=hint)
    return [Deployment.model_validate({**each, "canary": None}) for each in deployments]


def has_taken_over(agent: Deployment, state: AgentState | None, registry: Registry) -> bool:
    """Whether the code of a promoted canary runs in the place of what served before, so that the canary may go."""
    if state is None or state.status != "RUNNING" or state.drifted or not agent.is_promoted:
        return False
    present = {it.version for it in registry.replicas(agent.agent).values() if not it.canary}
    return present == {agent.code["version"]} or not (present or state.target)


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
        self._log = get_logger("squadron.bridge")

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
        self.note("card", *(self.leaving - self.agents.keys()))
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
        card = deployment.card.with_key(self._seal_key(deployment.agent))
        return card.model_copy(update={"canary": deployment.share})

    async def keep_code(self) -> None:
        """Have a copy of all code that travelled by value, and of no other."""
        blobs = {}
        running = [each.code for agent in self.agents.values() for each in agent.versions]
        for version in {code["version"] for code in running if not code.get("import_path")}:
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

    async def take_over(self, states: Mapping[str, AgentState]) -> None:
        """Have the scales that were set at the cluster's own door, as if they had been set here, and canaries end
        whose code serves.

        Raises:
            SquadronError: one could not be written; it is tried again.
        """
        for name, state in states.items():
            if state.set_by_hand is not None and (before := self.agents.get(name)) is not None:
                self._log.info("bridge.scaled_by_hand", agent=name, scale=str(state.set_by_hand))
                self.agents[name] = before.model_copy(update={"scale": state.set_by_hand})
                self.note("deployment", name)
        for name, agent in self.agents.items():
            if has_taken_over(agent, states.get(name), self._registry):
                self._log.info("bridge.promoted", agent=name, version=agent.code["version"])
                self.agents[name] = agent.model_copy(update={"canary": None})
                self.note("deployment", name)
                self.note("card", name)
        await self.put_right()

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

    async def try_to_write(self, kind: str, name: str) -> None:
        """As `write`, but what a full server does not store is noted."""
        try:
            await self.write(kind, name)
        except BusUnavailableError:
            self.note(kind, name)

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

    async def stand_in(self, states: Mapping[str, AgentState]) -> None:
        """Give a sign of life for each agent that lives by its state, and wants one."""
        least_s = len(self.agents) / STAND_INS_PER_S
        for name in list(self.agents):
            alive = name in states and states[name].status in _ALIVE
            if alive and self._registry.is_due(name, STAND_IN, least_s=least_s):
                await self._registry.renew(name, STAND_IN, least_s=least_s)
