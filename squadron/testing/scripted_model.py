"""A model that plays a script, for tests without an LLM."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

from squadron.actors.thinking.model import ModelRequest, ModelTurn
from squadron.runtime.errors import ModelError
from squadron.testing.misuse import ScriptError
from squadron.testing.speaking import Said, speak

#: One step of a script: a turn, its text, what is raised, or a function that makes any of these of the request.
ScriptedTurn = Said | Exception | Callable[[ModelRequest], Said]


class ScriptedModel:
    """Plays `turns` one by one, and keeps in `seen` what it was asked.

        with ScriptedModel(["the first answer", ModelError("busy", kind="passing"), "the second"]) as model:
            …

    As a context manager it fails in the end if a step was not played; `finish()` does so by itself.

    Args:
        name: under another, as `openai:gpt-5`, its tokens are counted and paid as that model's are.

    Attributes:
        seen: the request of each call, also of one that found the script over.
    """

    def __init__(self, turns: Iterable[ScriptedTurn], *, name: str = "scripted:test") -> None:
        self._turns: Sequence[ScriptedTurn] = tuple(turns)
        self.name = name
        self.seen: list[ModelRequest] = []

    @property
    def left(self) -> int:
        """How many steps were not played yet."""
        return max(0, len(self._turns) - len(self.seen))

    async def think(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelTurn:
        """Play the next step.

        Raises:
            ModelError: the script is over.
            Exception: the step is one.
        """
        played = len(self.seen)
        self.seen.append(request)
        if played >= len(self._turns):
            message = f"the script is over: it has {len(self._turns)} turns and this is call {played + 1}"
            raise ModelError(message, hint="give ScriptedModel more turns, or look for a call too many")
        step = self._turns[played]
        if isinstance(step, Exception):
            raise step
        return speak(step if isinstance(step, ModelTurn | str) else step(request), request, on_text, self.name)

    async def aclose(self) -> None:
        """Nothing to close. May be called twice."""

    def finish(self) -> None:
        """The test is over.

        Raises:
            ScriptError: not all of the script was played, or more was asked for; says how many.
        """
        asked, count = len(self.seen), len(self._turns)
        if asked != count:
            raise ScriptError(
                f"the script has {count} turns, and the model was asked {asked} times",
                hint="look at `model.seen`, and make the script as long as what is asked for",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What went wrong in the block says more.
        if error is None:
            self.finish()
