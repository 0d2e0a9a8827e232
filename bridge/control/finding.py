"""Finding topics for everybody: by words, by meaning where there is an embedder, and by what was learned."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import heapq
import json
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from squadron.actors.thinking.embedding import Embedder
from squadron.bridge.control.deployed import is_kept
from squadron.runtime.asking.searching import SEARCH_WITHIN_S
from squadron.runtime.errors import ConfigError, InvalidInputError, ModelError, SquadronError
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.journal import Journal
from squadron.runtime.redact import scrub
from squadron.runtime.registry.learned import Learned
from squadron.runtime.registry.lexical import FITS, LexicalRanker
from squadron.runtime.registry.ranker import Ranked, TopicKey, offered
from squadron.runtime.registry.registry import Registry
from squadron.runtime.retries import summary_of
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.subjects import token_of
from squadron.runtime.wire.topics import SemanticTopic

if TYPE_CHECKING:
    from squadron.runtime.registry.meaning import MeaningRanker, Nearness, Vectors

#: How often it is looked for topics without vectors, in seconds, and the pause after the embedder failed.
LOOK_S, PAUSE_S = 1.0, 30.0
#: Life of vectors in the registry, in seconds: 30 days; those of topics that are still there are made anew then.
VECTORS_LIFE_S = 30 * 24 * 3600.0
#: How long a search waits for the vector of its intent, in seconds, before words decide.
MEANT_WITHIN_S = 0.75 * SEARCH_WITHIN_S
#: Vectors of intents that are remembered, since people and models ask again.
INTENTS_KEPT = 2048
#: How much each thing that speaks against who serves a topic can take from its score, as it decides among near
#: equals; and how many more than are asked for are looked at for that.
HEALTH, NEAR = 0.01, 16
#: A task that costs so much, in US dollars, counts as half as dear as one without an end.
DEAR_USD = 0.05
#: Tasks that are taken to have gone well before there were any: one failure of one task says little.
BEFORE = 9
#: Ends of tasks that speak against who serves them.
BADLY = ("failed", "dead_lettered", "timed_out")
#: Where no topic reaches this by meaning and words, nothing is offered: 2 % of what is right in other languages
#: than the topic's scores less (`tests/data/topic_search/multilingual.json`), and next to nothing in its own.
FITS_MEANING = 0.1
#: How much shared words count beside meaning: by cross-validation on the development half of MetaTool, the same
#: for both models that were tried.
WORDS = 0.2
#: The most that words and meaning can come to together: an intent that is an example, word by word.
FULL = 1.5
#: Longest list of a search, and longest intent, in characters.
MOST_FOUND, MOST_INTENT = 1000, 20_000


class TrackRecord(NamedTuple):
    """How tasks of a topic ended, by kind of outcome, and what one costs in US dollars."""

    outcomes: Mapping[str, int] = MappingProxyType({})
    usd: float = 0.0

    @property
    def success(self) -> float:
        """The share that went well; what was refused or cancelled says nothing of who serves it."""
        well, badly = self.outcomes.get("result", 0), sum(self.outcomes.get(kind, 0) for kind in BADLY)
        return (well + BEFORE) / (well + badly + BEFORE)


class Finder:
    """What the bridge does for who looks for a topic: the verbs search, prefer, lessons, forget and track."""

    def __init__(
        self,
        ports: Ports,
        registry: Registry,
        records: Journal,
        embedder: Embedder | None = None,
        load: Callable[[str], float] = lambda _: 0.0,
        *,
        learns: bool = True,
        record: Callable[[TopicKey], TrackRecord] = lambda _: TrackRecord(),
    ) -> None:
        """Make one.

        Args:
            embedder: what makes vectors; without one words alone decide.
            load: how busy an agent is, from 0 to 1.
            learns: whether what `prefer` says counts.
            record: how the tasks of a topic went, and what they cost.
        """
        self._ports, self._registry, self._records = ports, registry, records
        self._embedder, self._load, self._learns, self._record = embedder, load, learns, record
        self._words, self._learned = LexicalRanker(), Learned()
        self._meaning: MeaningRanker | None = None
        #: Topics by agent, and whose card was not looked at since it changed.
        self._of: dict[str, dict[TopicKey, SemanticTopic]] = {}
        self._unseen = dict[str, None]()
        registry.on_card(lambda agent: self._unseen.update({agent: None}))
        #: Topics whose vectors are not those of what they say now.
        self._without: dict[TopicKey, None] = {}
        self._intents: OrderedDict[str, asyncio.Future[Vectors]] = OrderedDict()
        self._log = get_logger("squadron.bridge")

    @property
    def verbs(self) -> dict[str, Callable[..., Coroutine[Any, Any, dict[str, Any]]]]:
        """What it answers, by the verbs of the bridge's calls."""
        verbs = (self.search, self.prefer, self.lessons, self.forget, self.track)
        return {each.__name__: each for each in verbs}

    async def load(self) -> None:
        """Take up what was learned before."""
        now = self._ports.clock.time()
        for entry in await self._records.latest(self._ports.subjects.registry("learned")):
            if entry.data and await is_kept(self._ports.guard, entry):
                try:
                    stored = json.loads(entry.data)
                    self._learned.load(stored["topic"], stored["lessons"], now)
                except (ValueError, TypeError, LookupError, AttributeError) as error:
                    self._log.error("bridge.bad_record", key=entry.key, error=summary_of(error))

    async def keep(self) -> None:
        """See to it that topics have vectors."""
        while True:
            try:
                self._catch_up()
                for key in list(self._without) if self._embedder is not None else ():
                    await self._give_meaning(key)
                await asyncio.sleep(LOOK_S)
            except SquadronError as error:
                # Words still find them.
                self._log.warning("bridge.no_vectors", error=str(error))
                await asyncio.sleep(PAUSE_S)

    def _catch_up(self) -> None:
        """Take up the cards that have come, changed or gone."""
        for agent in self._unseen:
            card = self._registry.card(agent)
            topics = {TopicKey(topic.name, agent): topic for topic in card.topics} if card is not None else {}
            before = self._of.pop(agent, {})
            changed = [key for key in before.keys() | topics.keys() if before.get(key) != topics.get(key)]
            for key in changed:
                self._words.drop(key)
                self._without.pop(key, None)
                # What it meant it may mean no more: until it has new vectors its words find it.
                if self._meaning is not None:
                    self._meaning.drop(key)
            if topics:
                self._of[agent] = topics
            for key in changed:
                if key in topics:
                    self._put(key)
        self._unseen.clear()

    def _put(self, key: TopicKey) -> None:
        topic = self._of[key.agent][key]
        learned = self._examples(topic.name)
        self._words.put(key, topic.model_copy(update={"examples": (*topic.examples, *learned)}))
        self._without[key] = None

    def _topic(self, key: TopicKey) -> SemanticTopic | None:
        return self._of.get(key.agent, {}).get(key)

    def _examples(self, topic: str) -> tuple[str, ...]:
        """What was learned of a topic, if that counts."""
        return self._learned.examples(topic, self._ports.clock.time()) if self._learns else ()

    # --- meaning -------------------------------------------------------------------------------------

    async def _give_meaning(self, key: TopicKey) -> None:
        import numpy as np

        from squadron.runtime.registry.meaning import MeaningRanker

        if (topic := self._topic(key)) is None:
            self._without.pop(key, None)
            return
        learned = self._examples(topic.name)
        self._without.pop(key, None)
        try:
            vectors = await self._vectors_of(topic)
            more = [await self._vector(intent) for intent in learned]
        except BaseException:
            self._without[key] = None
            raise
        if self._meaning is None:
            self._meaning = MeaningRanker()
        if self._topic(key) is topic:
            self._meaning.put(key, vectors[0], np.vstack([vectors[1:], *more]))

    async def _vectors_of(self, topic: SemanticTopic) -> Vectors:
        """The vectors of a topic's words and examples: from the registry, or made and put there."""
        import numpy as np

        assert self._embedder is not None
        texts = [f"{topic.name.replace('.', ' ')}: {topic.description}", *topic.examples]
        said = json.dumps([self._embedder.name, *texts])
        key = self._ports.subjects.record("vectors", hashlib.sha256(said.encode()).hexdigest()[:32])
        entry = await self._records.last(key)
        if (
            entry is not None
            and await is_kept(self._ports.guard, entry)
            and (kept := self._read(entry.data, len(texts))) is not None
        ):
            return kept
        made = await self._made(texts)
        data = base64.b64encode(made.astype(np.float16).tobytes()).decode()
        stored = {"model": self._embedder.name, "topic": topic.name, "version": topic.version, "vectors": data}
        await self._records.append(key, json.dumps(stored).encode(), ttl_s=VECTORS_LIFE_S)
        return made

    def _read(self, stored: bytes, count: int) -> Vectors | None:
        """Vectors as they were stored; None if these are none, or not as long as the others."""
        import numpy as np

        try:
            flat = np.frombuffer(base64.b64decode(json.loads(stored)["vectors"]), np.float16).astype(np.float32)
            vectors = flat.reshape(count, -1)
        except (ValueError, TypeError, LookupError):
            return None
        return vectors if self._can_compare(vectors) else None

    async def _made(self, texts: Sequence[str]) -> Vectors:
        """Vectors of texts, new.

        Raises:
            ModelError: there are none, or they can't be compared with those that are known.
        """
        import numpy as np

        assert self._embedder is not None
        told = await self._embedder.embed(texts)
        try:
            made = np.asarray(told, np.float32)
        except ValueError:
            made = np.zeros((0, 0), np.float32)
        if made.ndim != 2 or len(made) != len(texts) or not self._can_compare(made):
            raise ModelError(f"{self._embedder.name} gives vectors that can't be compared with those it gave")
        return made

    def _can_compare(self, vectors: Vectors) -> bool:
        import numpy as np

        width = self._meaning.width if self._meaning is not None else 0
        return vectors.shape[1] > 0 and width in (0, vectors.shape[1]) and bool(np.isfinite(vectors).all())

    async def _vector(self, intent: str) -> Vectors:
        """Its vector, made once: who asks meanwhile waits for the same one."""
        if (making := self._intents.pop(intent, None)) is None:
            making = asyncio.ensure_future(self._make_vector(intent))
            making.add_done_callback(partial(self._forget_failed, intent))
        self._intents[intent] = making
        if len(self._intents) > INTENTS_KEPT:
            self._intents.popitem(last=False)
        # It is of use to others, and the next time, though this one does not wait any longer.
        return await asyncio.shield(making)

    def _forget_failed(self, intent: str, making: asyncio.Future[Vectors]) -> None:
        if (making.cancelled() or making.exception() is not None) and self._intents.get(intent) is making:
            del self._intents[intent]

    async def _make_vector(self, intent: str) -> Vectors:
        vector: Vectors = (await self._made([intent]))[0]
        return vector

    async def _meanings(self, intent: str) -> Nearness | None:
        if self._meaning is None or not intent.strip():
            return None
        try:
            async with asyncio.timeout(MEANT_WITHIN_S):
                return self._meaning.scores(await self._vector(intent)) or None
        except (ModelError, TimeoutError) as error:
            self._log.warning("bridge.no_vectors", error=str(error) or f"none in {MEANT_WITHIN_S:g} s")
            return None

    # --- what is asked -------------------------------------------------------------------------------

    async def search(self, intent: str, most: int = 8, least: float | None = None) -> dict[str, Any]:
        """The topics that fit an intent best, with their scores and why."""
        if not isinstance(intent, str) or len(intent) > MOST_INTENT:
            raise InvalidInputError(f"an intent has {MOST_INTENT} characters at most", field="intent")
        self._catch_up()
        meanings, words = await self._meanings(intent), self._words.scores(intent)
        most = min(int(most), MOST_FOUND)
        # Who is asked for is among these, whoever of near equals comes first.
        best = self._best(words, meanings, most + NEAR)
        fits = bool(best) and best[0].score >= (FITS_MEANING if meanings else FITS)
        well = [Ranked(round(one.score - HEALTH * sum(self._ills(one.key).values()), 4), one.key) for one in best]
        well.sort(key=lambda one: (-one.score, one.key))
        found = [
            {**key._asdict(), "score": score, "why": self._why(key, words, meanings)}
            for score, key in (offered(well, least, -1.0) if fits or least is not None else [])[:most]
        ]
        return {"found": found, "by": self._embedder.name if meanings and self._embedder else "words"}

    def _best(self, words: dict[TopicKey, float], meanings: Nearness | None, most: int) -> list[Ranked]:
        """The living topics that fit best, each from 0 to 1."""

        def lives(key: TopicKey) -> bool:
            return self._registry.is_live(key.agent)

        # A card that has no vectors yet is found by its words.
        found = (
            Ranked(said / (1 + said), key)
            for key, said in words.items()
            if (meanings is None or key not in meanings) and lives(key)
        )
        best = heapq.nlargest(most, found)
        if meanings is not None:
            near = meanings.best(most, lives, {key: WORDS * said for key, said in words.items()})
            best = heapq.nlargest(most, [*best, *(Ranked(score / FULL, key) for score, key in near if score > 0)])
        return best

    def _ills(self, key: TopicKey) -> dict[str, float]:
        """What speaks against asking a topic's agent now, each from 0 to 1."""
        record = self._record(key)
        told = {
            "busy": min(1.0, self._load(key.agent)),
            "replicas fell silent": min(1.0, self._registry.lapsed(key.agent) / 3),
            "tasks fail": 1.0 - record.success,
            "costs": record.usd / (record.usd + DEAR_USD),
        }
        return {what: much for what, much in told.items() if much > 0}

    def _why(self, key: TopicKey, words: dict[TopicKey, float], meanings: Nearness | None) -> list[str]:
        why = []
        if meanings is not None and key in meanings:
            why.append(f"meaning {meanings[key]:.2f}")
        if key in words:
            why.append(f"words {words[key]:.2f}")
        if learned := self._examples(key.name):
            why.append(f"{len(learned)} intent{'s' if len(learned) != 1 else ''} that led to it")
        return why + [f"{what} {much:.2f}" for what, much in self._ills(key).items()]

    async def prefer(self, intent: str, topic: str, good: bool = True, source: str = "") -> dict[str, Any]:
        """Learn that an intent led to a topic, and whether it went well.

        Raises:
            InvalidInputError: nobody serves the topic.
            ConfigError: nothing is learned here.
        """
        if not self._learns:
            raise ConfigError("nothing is learned from use here", hint="start the bridge with SQUADRON_LEARN=yes")
        if not isinstance(topic, str) or (served := self._registry.find(topic)) is None:
            raise InvalidInputError(f"nobody serves {topic!r}", field="topic", hint="see `squadron topics`")
        # A family is found as a whole: what led to one of its topics led to it.
        topic, now = served.name, self._ports.clock.time()
        self._learned.note(scrub(str(intent)[:MOST_INTENT]), topic, source, now, good=bool(good))
        await self._relearn(topic)
        return {"topic": topic, "lessons": self._learned.told(topic, now)}

    async def _relearn(self, topic: str) -> None:
        self._catch_up()
        for agent in self._registry.servers(topic):
            self._put(TopicKey(topic, agent))
        stored = {"topic": topic, "lessons": self._learned.dump(topic)}
        key = self._ports.subjects.record("learned", token_of(topic))
        await self._records.append(key, json.dumps(stored).encode())

    async def lessons(self, topic: str = "") -> dict[str, Any]:
        """What was learned of a topic, or of all."""
        now = self._ports.clock.time()
        return {"lessons": {each: self._learned.told(each, now) for each in self._named(topic)}}

    async def track(self, topic: str) -> dict[str, Any]:
        """How tasks of a topic ended, what one costs, and how its agents fare, for each of them."""
        told = {}
        for agent in self._registry.servers(topic):
            key = TopicKey(topic, agent)
            record, replicas = self._record(key), len(self._registry.replicas(agent))
            told[agent] = {"outcomes": dict(record.outcomes), "usd": record.usd, "replicas": replicas}
            told[agent] |= {"against": self._ills(key)}
        return {"agents": told, "learns": self._learns}

    async def forget(self, topic: str = "") -> dict[str, Any]:
        """Clear what was learned of a topic, or of all."""
        gone = self._named(topic)
        for each in gone:
            self._learned.forget(each)
            await self._relearn(each)
        return {"forgotten": list(gone)}

    def _named(self, topic: str) -> Sequence[str]:
        return [each for each in self._learned.topics if topic in ("", each)]
