"""The half of a squad that talks: ask, stream, publish, follow, and pursue a goal."""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Unpack
from weakref import WeakSet

from squadron.bridge.place import Place
from squadron.client.looking import Looking
from squadron.client.stream import Stream
from squadron.runtime.asking.handle import Handle
from squadron.runtime.asking.options import BIDS_WITHIN_S, AskKeywords, AskOptions
from squadron.runtime.errors import ConfigError, SquadClosedError, StreamGapError
from squadron.runtime.lite.topic import LiteTopic
from squadron.runtime.steady import Steady
from squadron.runtime.wire.groups import check_group
from squadron.runtime.wire.limits import UNLIMITED, Budget
from squadron.runtime.wire.outcome import Outcome
from squadron.runtime.wire.start import Start
from squadron.runtime.wire.subjects import check_pattern

if TYPE_CHECKING:
    from squadron.client.subscriptions import DurableEvents, Events
    from squadron.runtime.asking.answering import OpenQuestion, People, QuestionNews
    from squadron.runtime.lite.feed import LiteFeed
    from squadron.runtime.wire.question import Action, Reply

#: How long a whole run of the supervisor may take when the caller does not say, in seconds.
RUN_WITHIN_S = 600.0


class Talking(Looking):
    """A place on the bus, and all that can be said from there."""

    def __init__(self, wiring: Place) -> None:
        self._place, self._process, self._closed = wiring, os.getpid(), False
        self.settings = wiring.settings
        #: What is heard through this squad, and ends with it.
        self._heard: WeakSet[Events | DurableEvents] = WeakSet()

    @abstractmethod
    async def deploy(self, *agents: Any) -> None:
        """Run agents, and wait until they take tasks; the same name again replaces what runs."""

    async def _supervise(self) -> None:
        """See to it that somebody pursues goals."""
        from squadron.actors.goals.supervisor import Supervisor

        if self._wiring.registry.find("goal.pursue") is None:
            await self.deploy(Supervisor)

    @property
    def _wiring(self) -> Place:
        """The place on the bus, for as long as it can be used.

        Raises:
            SquadClosedError: it was closed, or is that of the process which forked this one.
        """
        if self._forked:
            # Whatever it sent would get in between what the other process sends on the same socket.
            raise SquadClosedError(
                "the squad belongs to the process that forked this one",
                hint="open one here: Squad.connect(), or start processes by `spawn`",
            )
        if self._closed:
            raise SquadClosedError("the squad is closed", hint="open another: Squad.up() or Squad.connect()")
        return self._place

    @property
    def _forked(self) -> bool:
        return os.getpid() != self._process

    # --- talking -------------------------------------------------------------------------------------

    async def ask(self, topic: str, content: Any = None, /, **options: Unpack[AskKeywords]) -> Outcome:
        """Send a task and wait for its one outcome, at most `within_s` seconds.

            outcome = await squad.ask("analysis.sentiment", {"text": "I love it"}, within_s=10)

        Never raises for what happens to the task: that is the outcome. `outcome.unwrap()` does.

        Args:
            content: the input: a mapping with the topic's fields, a model or dataclass with them, or the bare
                value where there is only one.
            options: see `AskOptions`.

        Raises:
            InvalidInputError: there is no such option, or it can't have that value.
        """
        return await (await self.submit(topic, content, **options)).outcome()

    async def submit(self, topic: str, content: Any = None, /, **options: Unpack[AskKeywords]) -> Handle:
        """Send a task without waiting; it is durable when this returns. Takes what `ask` takes."""
        return await self._wiring.caller.submit(topic, content, AskOptions.of(options))

    def resume(self, ticket: str) -> Handle:
        """The handle of a task that was submitted before, from its `Handle.ticket`; in any process.

        Raises:
            InvalidMessageError: that is no ticket.
        """
        return self._wiring.caller.resume(ticket)

    def stream(self, topic: str, content: Any = None, /, **options: Unpack[AskKeywords]) -> Stream:
        """Send a task and follow what it emits; takes what `ask` takes.

        With `nested=True` its `events()` hold the chunks of the tasks that it asks, too.
        """
        return Stream(functools.partial(self._wiring.caller.submit, topic, content, AskOptions.of(options)))

    async def negotiate(
        self,
        topics: str | Iterable[str],
        content: Any = None,
        /,
        *,
        bids_within_s: float = BIDS_WITHIN_S,
        **options: Unpack[AskKeywords],
    ) -> Outcome:
        """Have the agents of several topics bid for a task, and give it to the best; on failure to the next.

            outcome = await squad.negotiate(["review.fast", "review.deep"], {"text": text}, within_s=30)

        The outcome is that of the last one who tried, and `Undeliverable` if nobody bids; `details["refusals"]`
        says why. How bids are ranked: `award`.

        Args:
            topics: names, or patterns that stand for all topics that are served.
            content: the input, which must fit each topic.
            bids_within_s: how long bids are waited for, in seconds; it ends sooner if all have answered.
            options: those of `ask`, but for `route`, `bid` and `task_id`.

        Raises:
            InvalidInputError: there is no such option here, or it can't have that value; `content` is not JSON.
            InvalidSubjectError: a topic breaks the grammar.
        """
        from squadron.runtime.asking.negotiation import negotiate

        caller = self._wiring.caller
        return await negotiate(caller, self.submit, topics, content, options, bids_within_s=bids_within_s)

    async def publish(self, topic: str, content: Any, *, conversation_id: str = "") -> None:
        """Send an event to whoever listens now (at most once)."""
        await self._wiring.caller.sender.publish(topic, content, conversation_id=conversation_id)

    async def subscribe(self, pattern: str) -> Events:
        """Hear events: `status.*`, or `*.*` for all; active when this returns."""
        from squadron.client.subscriptions import Events

        events = Events(guard=self._wiring.ports.guard)
        subject = self._wiring.ports.subjects.event(check_pattern(pattern))
        events.attach(await self._wiring.ports.bus.subscribe(subject, events.hear))
        self._heard.add(events)
        return events

    def lite(
        self, id: str | None = None, owner: str | None = None, *, ttl_s: float | timedelta | None = None
    ) -> LiteTopic:
        """A lite topic: publish on it, read it, from the start or from where you were, and close it.

        Nothing happens on the wire: it is there from its first message on, which any NATS client may send.

        Args:
            id: a token; a fresh one by default.
            owner: a token; this process's own by default.
            ttl_s: how long it lives after each use, from 1 second to 30 days, in seconds or as a timedelta; by
                default what it lives already, or a day.

        Raises:
            InvalidSubjectError: `id` or `owner` is not a token.
            InvalidInputError: `ttl_s` is not a time, or out of its range.
        """
        return self._wiring.caller.lite_topics.topic(id, owner, ttl_s=ttl_s)

    def follow(self, owner: str | None = None) -> LiteFeed:
        """Follow many lite topics of one owner over one subscription: `async with squad.follow() as feed`.

        See `LiteFeed`. Many feeds, here and elsewhere, may follow the same topics: each hears everything.

        Args:
            owner: a token; this process's own by default.

        Raises:
            InvalidSubjectError: `owner` is not a token.
        """
        return self._wiring.caller.lite_topics.follow(owner)

    async def publish_durable(
        self, topic: str, content: Any, *, event_id: str = "", conversation_id: str = ""
    ) -> int:
        """Store an event for durable subscriptions (at least once) and return its sequence.

        It is stored once per `event_id` within two minutes.

        Raises:
            InvalidSubjectError: `topic` is not `domain.specificity`.
            MessageTooLargeError: larger than the server takes.
            BusUnavailableError: not acknowledged in time; the same `event_id` again is safe.
        """
        return await self._wiring.caller.sender.publish_durable(
            topic, content, event_id=event_id, conversation_id=conversation_id
        )

    async def subscribe_durable(self, name: str, pattern: str, *, start: Start = "new") -> DurableEvents:
        """Hear durable events, each at least once per `name`, whoever reads under it; see `DurableEvents`.

        Args:
            name: a token; those who subscribe under the same one share its events.
            start: where a new name begins: "new", "first", a sequence (int), or a time (an aware datetime, or a
                float of seconds since the epoch). A known one goes on where it was.

        Raises:
            InvalidSubjectError: the name is not a token, or the pattern breaks the grammar.
            InvalidInputError: `start` is not a place in the log.
            BusUnavailableError: the server can't be reached.
        """
        from squadron.client.subscriptions import DurableEvents

        events = await DurableEvents.open(self._wiring, name, pattern, start)
        self._heard.add(events)
        return events

    async def forget_subscription(self, name: str) -> None:
        """Delete a durable subscription and its place; an agent's is `agent.method`."""
        await self._wiring.ports.events.forget(check_group(name))

    async def resume_run(
        self,
        id: str,
        *,
        model: str = "",
        max_rounds: int = 12,
        within_s: float = RUN_WITHIN_S,
        budget: Budget = UNLIMITED,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> Outcome:
        """Have a run of the supervisor that has ended go on from where it was, with new limits; see `run`.

        What it was told besides holds on: topics, plan, approvals, and the model, if no other one is named.

        Raises:
            ConfigError: there is no such run, it still runs, or it is not the supervisor's.
        """
        info = await self.runs.find(id)
        if not info.ended:
            raise ConfigError(f"{info.run} still runs", hint="wait for it, or stop it: squadron runs cancel")
        if info.topic != "goal.pursue":
            hint = f"put its task back: squadron dlq redrive {info.task}"
            raise ConfigError(f"{info.run} is a part of the task {info.task} of {info.agent}", hint=hint)
        return await self._pursue(
            {"goal": info.title, "resume": info.run}, model or None, max_rounds, within_s, budget, on_event
        )

    # --- people --------------------------------------------------------------------------------------

    async def questions(self) -> list[OpenQuestion]:
        """What waits for people now, oldest first; each has a `query_id` and a `question`.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        return await self._people.questions()

    async def question(self, query_id: str) -> OpenQuestion:
        """The question of this id, or whose id begins with it.

        Raises:
            UnknownQuestionError: no question waits under it, or several do.
            QuestionClosedError: somebody answered it, it was withdrawn, or its deadline has passed.
            BusUnavailableError: the server can't be reached.
        """
        return await self._people.find(query_id)

    def follow_questions(self) -> Steady[QuestionNews]:
        """What waits for people now, then what is asked and what becomes of it: iterate with `async for`."""
        return self._people.follow()

    async def answer(
        self, query_id: str, content: Any = None, /, *, action: Action = "accept", by: str = ""
    ) -> Reply:
        """Answer a question; the first answer that fits counts.

        Args:
            query_id: in full, or its beginning.
            content: the fields of the question's schema, or the bare value of the only one; of what is not
                accepted the reason. Of an approval also `always`, and `arguments` to change them.
            action: "accept", "decline", or "cancel".
            by: who answers; the user of this process by default.

        Raises:
            InvalidInputError: the content does not fit; nothing was sent.
            UnknownQuestionError: no question waits under this id, or several do.
            QuestionClosedError: somebody was first, it was withdrawn, or its deadline has passed.
            BusUnavailableError: not acknowledged in time; answering again is safe.
        """
        return await self._people.answer(query_id, content, action=action, by=by or user_name())

    @property
    def _people(self) -> People:
        from squadron.runtime.asking.answering import People

        return People(self._wiring.ports, self._wiring.caller.lite_topics)

    # --- goals ---------------------------------------------------------------------------------------

    async def run(
        self,
        goal: str,
        *,
        model: str = "",
        topics: Iterable[str] = (),
        plan: Sequence[Any] | None = None,
        max_rounds: int = 12,
        within_s: float = RUN_WITHIN_S,
        budget: Budget = UNLIMITED,
        gather: Mapping[str, Any] | None = None,
        approve: Iterable[str] = (),
        trust: Iterable[str] = (),
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> Outcome:
        """Have the supervisor pursue a goal; the outcome's data is a `RunReport`.

        Args:
            model: `openai:NAME`, `anthropic:NAME` or `offline`; by default the one whose key is set.
            topics: names or patterns it may use; all by default.
            plan: rounds of steps for the offline planner.
            within_s: for the whole run, in seconds.
            budget: what it may spend, with all that it asks of others.
            gather: when the model is asked again while calls still run: `{"after": "all"}` (the default),
                `"quorum"`, or so many of them; with `within_s`, after so many seconds one is enough.
            approve: topics or patterns whose calls people approve first, whatever their cards say.
            trust: those that need no approval, whatever their cards say.
            on_event: sees what the supervisor does; the first event, "submitted", has a `ticket` for `resume`.
        """
        asked = {"goal": goal, "topics": list(topics), "plan": plan, "gather": gather}
        asked |= {"approve": list(approve), "trust": list(trust)}
        from squadron.actors.thinking.providers import default_model_spec

        chosen = model or self.settings.model or default_model_spec(os.environ)
        return await self._pursue(asked, chosen, max_rounds, within_s, budget, on_event)

    async def _pursue(
        self,
        asked: dict[str, Any],
        model: str | None,
        max_rounds: int,
        within_s: float,
        budget: Budget,
        on_event: Callable[[dict[str, Any]], None] | None,
    ) -> Outcome:
        await self._wiring.registry.catch_up()
        await self._supervise()
        # The run stops by itself a little before its caller does.
        limits = {"max_rounds": max_rounds, "within_s": max(1.0, 0.95 * within_s)}
        handle = await self.submit("goal.pursue", asked | limits, within_s=within_s, model=model, budget=budget)
        hear = on_event or (lambda _: None)
        hear({"event": "submitted", "ticket": handle.ticket})
        # Of a run whose progress can't be told the outcome counts all the same.
        with contextlib.suppress(StreamGapError):
            async for event in handle.chunks():
                hear(event)
        return await handle.outcome()


def user_name() -> str:
    """Who is at this machine; a container may know nobody by name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "somebody"
