"""Agents that think with an LLM."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cached_property
from typing import Any, ClassVar, TypeVar, cast
from weakref import WeakKeyDictionary

from pydantic import TypeAdapter, ValidationError

from squadron.actors.llm.note_tools import NoteTool
from squadron.actors.llm.tools import ToolSpec, tools_of
from squadron.actors.runs.built_in import Finish
from squadron.actors.runs.emitter import Emitter
from squadron.actors.runs.loop import SAID_NOTHING, Conclusion, Stopped, was_told
from squadron.actors.runs.session import Beginning, Session, run_id
from squadron.actors.runs.state import RunState
from squadron.actors.runs.toolbox import Toolbox
from squadron.actors.thinking.catalog import window_of
from squadron.actors.thinking.choice import OFFLINE, chain_of, load_sdk, open_model, sampling_of, spec_of
from squadron.actors.thinking.exchanges import EARLIER_SHARE, Exchanges
from squadron.actors.thinking.fence import FENCE_RULE
from squadron.actors.thinking.model import Attachment, ChatMessage, Model, ModelTurn
from squadron.actors.thinking.notes import NOTE_TOOLS, Notes
from squadron.actors.thinking.providers import model_key
from squadron.actors.thinking.thinker import Thinker
from squadron.actors.thinking.tokens import family_of
from squadron.runtime.errors import Terminal
from squadron.runtime.running.context import IN_TIME, Context, TurnContext
from squadron.runtime.store.sealed import salt_of
from squadron.runtime.texts import encoded
from squadron.runtime.wire.topics import SemanticTopic

T = TypeVar("T")

#: Turns of the model within one task of an `LLMAgent`: room to use tools, an end for one that is lost.
MAX_ROUNDS = 8
#: How often a typed answer that does not fit is sent back.
MAX_REPAIRS = 2
#: Models that stay open when nobody uses them, those used last.
MOST_MODELS = 8
#: Longest life of one such run, in seconds: a task without a deadline has its handler's own.
WITHIN_S = 24 * 3600.0


class LLMAgent(Thinker):
    """An agent whose handlers ask an LLM with `think` or `think_as`.

    class Translator(LLMAgent):
        \"\"\"You translate into plain English.\"\"\"

        @topic("text.translate")
        async def translate(self, text: str, ctx: Context) -> str:
            \"\"\"Translate a text into English.\"\"\"
            return await self.think(ctx, text)

    What its model said and its tools did is kept: another replica that takes over pays for nothing twice.

    Attributes:
        instructions: the system prompt; the class docstring by default.
        remembers: whether it recalls its earlier exchanges in the same conversation.
        takes_notes: whether its model may save notes, and find them in later tasks of the conversation.
        asks: topics of other agents that its model may ask, as tools.
    """

    instructions: ClassVar[str] = ""
    remembers: ClassVar[bool] = True
    takes_notes: ClassVar[bool] = False
    asks: ClassVar[tuple[str, ...]] = ()

    @cached_property
    def _models(self) -> dict[str, Model]:
        return {}

    @cached_property
    def _users(self) -> Counter[str]:
        """How often each of these is in use."""
        return Counter()

    @cached_property
    def _tools(self) -> list[ToolSpec]:
        return tools_of(self)

    @cached_property
    def _thoughts(self) -> WeakKeyDictionary[Context, Counter[str]]:
        """How often each turn asked the same."""
        return WeakKeyDictionary()

    async def on_stop(self) -> None:
        """Close the models' connections; call it when you override it."""
        while self._models:
            _, model = self._models.popitem()
            await model.aclose()

    def make_model(self, spec: str) -> Model:
        """The model of a spec; override it for models of your own. What takes long to load belongs in `on_start`.

        Raises:
            Terminal: there is none.
        """
        if spec == OFFLINE:
            raise Terminal(
                f"{type(self).__name__} needs an LLM and none is configured: set OPENAI_API_KEY or "
                "ANTHROPIC_API_KEY, or SQUADRON_MODEL=provider:name, or name a model in the task (payload.model)"
            )
        return open_model(spec)

    @asynccontextmanager
    async def _open(self, specs: Sequence[str]) -> AsyncIterator[list[Model]]:
        """The models of these specs, which stay open meanwhile."""
        # A model that was made with a key that was rotated since is not the one to ask.
        keys = [model_key(spec) for spec in specs]
        self._users.update(keys)
        try:
            for spec, key in zip(specs, keys, strict=True):
                if key not in self._models:
                    await load_sdk(spec)
            for spec, key in zip(specs, keys, strict=True):
                known = self._models.pop(key, None)
                # What was used last is last.
                self._models[key] = self.make_model(spec) if known is None else known
            yield [self._models[key] for key in keys]
        finally:
            self._users.subtract(keys)
            await self._close_old()

    async def _close_old(self) -> None:
        # Whoever sends tasks names models, as many as they like.
        unused = [key for key in self._models if self._users[key] <= 0]
        over = max(0, len(self._models) - MOST_MODELS)
        closing = [self._models.pop(key) for key in unused[:over]]
        for key in [key for key, count in self._users.items() if count <= 0]:
            del self._users[key]
        await asyncio.gather(*(model.aclose() for model in closing), return_exceptions=True)

    async def think(self, ctx: Context, prompt: str, *, attachments: Sequence[Attachment] = ()) -> str:
        """The model's answer to `prompt`, in words; streamed to whoever follows the task.

        Raises:
            Terminal: the model can't be asked, or does not come to an end.
        """
        return str(await self._converse(ctx, ChatMessage("user", prompt, attachments=tuple(attachments)), None))

    async def think_as(
        self, ctx: Context, prompt: str, kind: type[T], *, attachments: Sequence[Attachment] = ()
    ) -> T:
        """The model's answer to `prompt` as a value of `kind` (a pydantic model, or any type with a schema).

        An answer that does not fit is sent back twice, with what is wrong about it.

        Raises:
            Terminal: the model can't be asked, or gives no such value.
        """
        adapter = TypeAdapter[T](kind)
        asked = ChatMessage("user", prompt, attachments=tuple(attachments))
        return adapter.validate_python(await self._converse(ctx, asked, adapter), by_alias=True, by_name=True)

    async def _converse(self, ctx: Context, prompt: ChatMessage, answer: TypeAdapter[Any] | None) -> Any:
        turn = cast("TurnContext", ctx)
        schema = answer.json_schema() if answer is not None else None
        # The same on every attempt: what the handler asks, and how often it did so before.
        salt = (salt_of(ctx.message),) if ctx.is_sealed else ()
        digest = hashlib.sha256(encoded((prompt, schema, *salt))).hexdigest()
        seen = self._thoughts.setdefault(ctx, Counter())
        seen[digest] += 1
        own: list[Any] = [spec.bound(turn) for spec in self._tools]
        if self.takes_notes:
            notes = Notes.of(turn)
            own += [NoteTool(definition, notes) for definition in NOTE_TOOLS]
        memory = Exchanges(turn, seen.total(), remembers=self.remembers)
        async with AsyncExitStack() as stack:

            async def opened(specs: Sequence[str]) -> list[Model]:
                return await stack.enter_async_context(self._open(specs))

            given = self.given_model
            chain = [given] if given is not None else await opened(chain_of(spec_of(ctx)))
            summary_models = await self.models_for_summaries(ctx, chain, opened)
            emitter = await stack.enter_async_context(Emitter(ctx, only={"retry"}))
            session = Session(
                ctx=turn,
                run=run_id(ctx.message.id, digest, str(seen[digest])),
                toolbox=Toolbox(own=own, allowed=self.asks),
                chain=chain,
                summary_models=summary_models,
                emitter=emitter,
                max_rounds=MAX_ROUNDS,
                within_s=min(WITHIN_S, IN_TIME * ctx.deadline.remaining_s()),
                sampling=sampling_of(ctx),
                output_schema=schema,
            )
            thought = _Thought(self, turn, prompt, answer, memory, chain[0].name)
            _, finished = await session.pursue(thought, thought.begin)
        said = (
            finished.value if isinstance(finished.value, str) else json.dumps(finished.value, ensure_ascii=False)
        )
        await memory.add(prompt.content, said)
        return finished.value

    def opening(self) -> str:
        """The system prompt."""
        text = self.instructions or inspect.cleandoc(type(self).__doc__ or "")
        return f"{text}\n\n{FENCE_RULE}" if text else FENCE_RULE


class _Thought:
    """What a prompt adds to the loop; see `Aim`."""

    def __init__(
        self,
        agent: LLMAgent,
        ctx: TurnContext,
        prompt: ChatMessage,
        answer: TypeAdapter[Any] | None,
        memory: Exchanges,
        model: str,
    ) -> None:
        self._agent, self._ctx, self._prompt = agent, ctx, prompt
        self._answer, self._memory, self._model = answer, memory, model

    async def begin(self) -> Beginning:
        """Instructions, what was said before, and the prompt."""
        room = int(EARLIER_SHARE * (window_of(self._model) or 128_000))
        earlier = await self._memory.earlier(budget_tokens=room, family=family_of(self._model))
        opening = [ChatMessage("system", self._agent.opening()), *earlier, self._prompt]
        registry = self._ctx.caller.registry
        topics = [found for name in self._agent.asks if (found := registry.find(name)) is not None]
        return Beginning(title=self._prompt.content, opening=opening, topics=topics)

    async def find(self, intent: str) -> Sequence[SemanticTopic]:
        return ()

    def judge(self, state: RunState, turn: ModelTurn) -> Conclusion | str:
        if turn.stop in ("length", "overflow"):
            raise Terminal(
                f"the model {turn.model} ran out of tokens in the middle of its answer: raise maxTokens"
            )
        if self._answer is None:
            if turn.text.strip():
                return Conclusion(turn.text)
            if not was_told(state):
                return SAID_NOTHING
            raise Terminal(f"the model {turn.model} gave no answer: it said nothing")
        text = turn.text.strip().removeprefix("```json").strip("`").strip()
        try:
            value = self._answer.validate_json(text)
        except ValidationError as error:
            problem = "; ".join(
                f"{'.'.join(map(str, each['loc'])) or 'the answer'}: {each['msg']}" for each in error.errors()[:5]
            )
            if state.nudges >= MAX_REPAIRS:
                raise Terminal(f"the model {turn.model} gave no answer that fits: {problem}") from None
            schema = json.dumps(self._answer.json_schema(), ensure_ascii=False)
            return f"Your answer does not fit: {problem}. Answer with nothing but JSON that fits {schema}"
        return Conclusion(self._answer.dump_python(value, mode="json", by_alias=True))

    def finish(self, state: RunState, asked: Finish) -> Conclusion:
        return Conclusion(asked.answer)

    def stop(self, state: RunState, stopped: Stopped, why: str) -> Any:
        raise Terminal(f"the model {self._model} came to no answer: {why}")
