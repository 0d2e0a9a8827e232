"""Finding topics for everybody: by words, by meaning where there is an embedder, and by what was learned."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from squadron.actors.thinking.embedding import Embedder
from squadron.bridge.control.deployed import is_kept
from squadron.runtime.errors import InvalidInputError, ModelError, SquadronError
from squadron.runtime.ports.journal import Journal
from squadron.runtime.registry.learned import Learned
from squadron.runtime.registry.lexical import LexicalRanker
from squadron.runtime.registry.ranker import TopicKey
from squadron.runtime.registry.registry import Registry
from squadron.runtime.retries import summary_of
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.subjects import token_of
from squadron.runtime.wire.topics import SemanticTopic

if TYPE_CHECKING:
    from squadron.runtime.registry.meaning import MeaningRanker, Vectors

#: How often it is looked for topics without vectors, in seconds, and the pause after the embedder failed.
LOOK_S, PAUSE_S = 1.0, 30.0
#: Life of vectors in the registry, in seconds: 30 days; those of topics that are still there are made anew then.
VECTORS_LIFE_S = 30 * 24 * 3600.0
#: Vectors of intents that are remembered, since people and models ask again.
INTENTS_KEPT = 2048
#: How much the state of who serves a topic can take from its score: it decides among near equals.
HEALTH = 0.02
#: How much shared words count beside meaning: by cross-validation on the development half of MetaTool, the same
#: for both models that were tried.
WORDS = 0.2
#: The most that words and meaning can come to together: an intent that is an example, word by word.
FULL = 1.5
#: Longest list of a search, and longest intent, in characters.
MOST_FOUND, MOST_INTENT = 1000, 20_000


class Finder:
    """What the bridge does for who looks for a topic: the verbs search, prefer, lessons and forget."""

    def __init__(
        self,
        ports: Ports,
        registry: Registry,
        records: Journal,
        embedder: Embedder | None = None,
        load: Callable[[str], float] = lambda _: 0.0,
    ) -> None:
        """Make one.

        Args:
            embedder: what makes vectors; without one words alone decide.
            load: how busy an agent is, from 0 to 1.
        """
        self._ports, self._registry, self._records = ports, registry, records
        self._embedder, self._load = embedder, load
        self._words, self._learned = LexicalRanker(), Learned()
        self._meaning: MeaningRanker | None = None
        self._known: dict[TopicKey, SemanticTopic] = {}
        #: Topics whose vectors are not those of what they say now.
        self._without: dict[TopicKey, None] = {}
        self._intents: OrderedDict[str, Vectors] = OrderedDict()
        self._seen_changes = -1
        self._log = structlog.get_logger("squadron.bridge")

    @property
    def verbs(self) -> dict[str, Callable[..., Coroutine[Any, Any, dict[str, Any]]]]:
        """What it answers, by the verbs of the bridge's calls."""
        return {each.__name__: each for each in (self.search, self.prefer, self.lessons, self.forget)}

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
        if self._seen_changes == self._registry.changes:
            return
        self._seen_changes = self._registry.changes
        offered = {TopicKey(topic.name, agent): topic for topic, agent in self._registry.offered()}
        for key in [key for key in self._known if key not in offered]:
            self._words.drop(key)
            if self._meaning is not None:
                self._meaning.drop(key)
            self._without.pop(key, None)
            del self._known[key]
        for key, topic in offered.items():
            if self._known.get(key) is not topic:
                self._known[key] = topic
                self._put(key)

    def _put(self, key: TopicKey) -> None:
        topic = self._known[key]
        learned = self._learned.examples(topic.name, self._ports.clock.time())
        self._words.put(key, topic.model_copy(update={"examples": (*topic.examples, *learned)}))
        self._without[key] = None

    # --- meaning -------------------------------------------------------------------------------------

    async def _give_meaning(self, key: TopicKey) -> None:
        import numpy as np

        from squadron.runtime.registry.meaning import MeaningRanker

        if (topic := self._known.get(key)) is None:
            self._without.pop(key, None)
            return
        learned = self._learned.examples(topic.name, self._ports.clock.time())
        self._without.pop(key, None)
        try:
            vectors = await self._vectors_of(topic)
            more = [await self._vector(intent) for intent in learned]
        except BaseException:
            self._without[key] = None
            raise
        if self._meaning is None:
            self._meaning = MeaningRanker()
        if self._known.get(key) is topic:
            self._meaning.put(key, vectors[0], np.vstack([vectors[1:], *more]))

    async def _vectors_of(self, topic: SemanticTopic) -> Vectors:
        """The vectors of a topic's words and examples: from the registry, or made and put there."""
        import numpy as np

        assert self._embedder is not None
        texts = [f"{topic.name.replace('.', ' ')}: {topic.description}", *topic.examples]
        said = json.dumps([self._embedder.name, *texts])
        key = self._ports.subjects.record("vectors", hashlib.sha256(said.encode()).hexdigest()[:32])
        entry = await self._records.last(key)
        if entry is not None and entry.data and await is_kept(self._ports.guard, entry):
            stored = json.loads(entry.data)
            flat = np.frombuffer(base64.b64decode(stored["vectors"]), np.float16).astype(np.float32)
            return flat.reshape(len(texts), -1)
        made = np.asarray(await self._embedder.embed(texts), np.float32)
        data = base64.b64encode(made.astype(np.float16).tobytes()).decode()
        stored = {"model": self._embedder.name, "topic": topic.name, "version": topic.version, "vectors": data}
        await self._records.append(key, json.dumps(stored).encode(), ttl_s=VECTORS_LIFE_S)
        return made

    async def _vector(self, intent: str) -> Vectors:
        import numpy as np

        assert self._embedder is not None
        if (known := self._intents.pop(intent, None)) is None:
            known = np.asarray((await self._embedder.embed([intent]))[0], np.float32)
        self._intents[intent] = known
        if len(self._intents) > INTENTS_KEPT:
            self._intents.popitem(last=False)
        return known

    async def _meanings(self, intent: str) -> dict[TopicKey, float]:
        if self._meaning is None or not intent.strip():
            return {}
        try:
            return self._meaning.scores(await self._vector(intent))
        except ModelError as error:
            self._log.warning("bridge.no_vectors", error=str(error))
            return {}

    # --- what is asked -------------------------------------------------------------------------------

    async def search(self, intent: str, most: int = 8, least: float = 0.0) -> dict[str, Any]:
        """The topics that fit an intent best, with their scores and why."""
        if not isinstance(intent, str) or len(intent) > MOST_INTENT:
            raise InvalidInputError(f"an intent has {MOST_INTENT} characters at most", field="intent")
        self._catch_up()
        meanings = await self._meanings(intent)
        words = self._words.scores(intent)
        ranked = []
        for key in {*words, *meanings}:
            if self._registry.is_live(key.agent):
                score = self._score(key, words, meanings)
                if score > 0 and score >= least:
                    ranked.append((-round(score, 4), key))
        ranked.sort()
        found = [
            {"name": key.name, "agent": key.agent, "score": -score, "why": self._why(key, intent, words, meanings)}
            for score, key in ranked[: min(int(most), MOST_FOUND)]
        ]
        return {"found": found, "by": self._embedder.name if meanings and self._embedder else "words"}

    def _score(self, key: TopicKey, words: dict[TopicKey, float], meanings: dict[TopicKey, float]) -> float:
        said = words.get(key, 0.0)
        if not meanings:
            score = said / (1 + said)
        else:
            # A card that has no vectors yet is found by its words.
            near = meanings.get(key)
            score = (said / (1 + said) if near is None else near + WORDS * said) / (1 if near is None else FULL)
        return score - HEALTH * self._ill(key.agent)

    def _ill(self, agent: str) -> float:
        """How much speaks against asking an agent now, from 0 to 1: it is busy, or its replicas fall silent."""
        return (min(1.0, self._load(agent)) + min(1.0, self._registry.lapsed(agent) / 3)) / 2

    def _why(
        self, key: TopicKey, intent: str, words: dict[TopicKey, float], meanings: dict[TopicKey, float]
    ) -> list[str]:
        why = []
        if key in meanings:
            why.append(f"meaning {meanings[key]:.2f}")
        if key in words:
            why.append(f"words {words[key]:.2f}")
        if learned := self._learned.examples(key.name, self._ports.clock.time()):
            why.append(f"{len(learned)} intents that led to it")
        if (ill := self._ill(key.agent)) > 0:
            why.append(f"busy or failing {ill:.2f}")
        return why

    async def prefer(self, intent: str, topic: str, good: bool = True, source: str = "") -> dict[str, Any]:
        """Learn that an intent led to a topic, and whether it went well.

        Raises:
            InvalidInputError: nobody serves the topic.
        """
        if self._registry.find(topic) is None:
            raise InvalidInputError(f"nobody serves {topic!r}", field="topic", hint="see `squadron topics`")
        self._learned.note(str(intent)[:MOST_INTENT], topic, source, self._ports.clock.time(), good=bool(good))
        await self._relearn(topic)
        return {"topic": topic, "lessons": self._learned.told(topic, self._ports.clock.time())}

    async def _relearn(self, topic: str) -> None:
        self._catch_up()
        for known in [key for key in self._known if key.name == topic]:
            self._put(known)
        stored = {"topic": topic, "lessons": self._learned.dump(topic)}
        key = self._ports.subjects.record("learned", token_of(topic))
        await self._records.append(key, json.dumps(stored).encode())

    async def lessons(self, topic: str = "") -> dict[str, Any]:
        """What was learned of a topic, or of all."""
        now = self._ports.clock.time()
        return {"lessons": {each: self._learned.told(each, now) for each in self._named(topic)}}

    async def forget(self, topic: str = "") -> dict[str, Any]:
        """Clear what was learned of a topic, or of all."""
        gone = self._named(topic)
        for each in gone:
            self._learned.forget(each)
            await self._relearn(each)
        return {"forgotten": list(gone)}

    def _named(self, topic: str) -> Sequence[str]:
        return [each for each in self._learned.topics if topic in ("", each)]
