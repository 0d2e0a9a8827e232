"""Which model a task is thought through with, and how it samples."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

from squadron.actors.thinking.credentials import given
from squadron.actors.thinking.model import Model
from squadron.actors.thinking.providers import PROVIDERS, default_model_spec, model_from, provider_of
from squadron.runtime.errors import ConfigError, ModelError, Terminal
from squadron.runtime.running.context import Context

#: The spec that stands for no LLM at all, and for summaries the one that stands for those of the run itself.
OFFLINE, SAME = "offline", "same"


def spec_of(ctx: Context) -> str:
    """The model to use for this task: the one the message names, else the environment's default."""
    return ctx.message.payload.model or default_model_spec(given())


def chain_of(spec: str) -> list[str]:
    """The specs of a chain like `anthropic:NAME,openai:NAME`, the one to ask first at its head.

    Raises:
        Terminal: one of them is empty, or there twice.
    """
    specs = [part.strip() for part in spec.split(",")]
    for index, part in enumerate(specs):
        if not part or part in specs[:index]:
            what = f"{part!r} is there twice" if part else "a part of it is empty"
            raise Terminal(f"the chain of models {spec!r}: {what} (use anthropic:NAME,openai:NAME)")
    return specs


def summary_spec_of(own: str) -> str:
    """What summaries are written with: what an agent says itself, else the environment; `OFFLINE` by default."""
    return own or given().get("SQUADRON_SUMMARY_MODEL", "").strip() or OFFLINE


def rerank_spec() -> str:
    """What puts the topics that a supervisor finds into order: a spec, `SAME`, or empty for nobody."""
    return given().get("SQUADRON_RERANK", "").strip()


def sampling_of(ctx: Context) -> dict[str, Any]:
    """`temperature` and `max_tokens` from the message's parameters, as arguments of `Model.think`.

    Raises:
        Terminal: one of them is not a number.
    """
    given = ctx.message.payload.parameters or {}
    sampling: dict[str, Any] = {}
    for name, wire, kind in (("temperature", "temperature", float), ("max_tokens", "maxTokens", int)):
        value = given.get(wire, given.get(name))
        if value is not None:
            try:
                sampling[name] = kind(value)
            except (TypeError, ValueError):
                raise Terminal(f"payload.parameters.{wire}: {value!r} is not a number") from None
    return sampling


async def load_sdk(spec: str) -> None:
    """Load the library of the provider that `spec` names, if it names one.

    In a thread: that takes seconds on a busy machine, and the leases of all tasks of a replica whose event loop is
    blocked for so long run out.
    """
    if (provider := provider_of(spec)) in PROVIDERS:
        await asyncio.to_thread(importlib.import_module, provider)


def open_model(spec: str) -> Model:
    """The LLM that `spec` names.

    Raises:
        Terminal: it names none, or there is no key for it.
    """
    try:
        return model_from(spec)
    except (ConfigError, ModelError) as error:
        raise Terminal(str(error)) from error
